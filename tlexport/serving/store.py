"""A repository to work in: a folder, or an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tlexport.errors import RepositoryError
from tlexport.files import cannot_write
from tlexport.serving import staging


class Store(Protocol):
    """Changes are made in `folder`, whole steps at a time; `push` is called after each."""

    folder: Path
    shown: str

    def push(self) -> None:
        """Have the repository be as the folder is."""


class Folder:
    """A repository on a disk: the folder is the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = str(folder)

    def push(self) -> None:
        """Nothing is left to do."""


@contextlib.contextmanager
def opened(place: Path | str, model: str | None, waiting: Callable[[], None]) -> Iterator[Store]:
    """Open a repository for writing: whoever else writes waits. `waiting` is told of a wait.

    Raises:
        RepositoryError: it cannot be written.
    """
    folder = Path(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.locked(folder, waiting):
            yield Folder(folder)
    except OSError as error:
        raise RepositoryError(
            f"to write the repository {str(folder)!r}",
            got=error.strerror or str(error),
            fix=cannot_write(folder, error).fix,
        ) from error
