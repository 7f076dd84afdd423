"""A repository to work in: a folder, or an object store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tlexport.errors import RepositoryError
from tlexport.files import cannot_write
from tlexport.progress import Progress, silent
from tlexport.serving import remote, repository, staging
from tlexport.serving.pipeline import whole
from tlexport.serving.rollout import CANDIDATE, candidate_of


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
def opened(place: Path | str, model: str, progress: Progress = silent) -> Iterator[Store]:
    """Open a repository to change a model; whoever else writes waits, and is told so.

    Raises:
        RepositoryError: it cannot be written.
        OptionError: a URL of another store than S3, Google's or Azure's.
        MissingDependency: the library for object stores is not installed.
    """

    def waiting() -> None:
        progress("waiting for another deploy or package", 0, None)

    if (url := remote.url_of(place)) is not None:
        with remote.mirrored(url, _around(model), waiting=waiting) as mirror:
            yield mirror
        return
    folder = Path(place)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.locked(folder, waiting):
            try:
                yield Folder(folder)
            finally:
                if is_new:
                    staging.remove_if_empty(folder)
    except OSError as error:
        raise RepositoryError(
            f"to write the repository {str(folder)!r}",
            got=error.strerror or str(error),
            fix=cannot_write(folder, error).fix,
        ) from error


@contextlib.contextmanager
def readable(place: Path | str, model: str | None = None) -> Iterator[Path]:
    """A repository to be read: the folder itself, or a copy of what the store holds.

    Of one model alone the copy has no large files, and may be of one that is being changed.
    """
    url = remote.url_of(place)
    if url is None:
        yield Path(place)
        return
    pick = _around(model) if model else list[str]
    with remote.mirrored(url, pick, whole=model is None) as mirror:
        yield mirror.folder


def _around(model: str) -> Callable[[list[str]], list[str]]:
    """A model, its pipeline and their candidates, of all that there are."""
    mine = {name for each in whole(model) for name in (each, candidate_of(each))}
    return lambda found: [name for name in found if name in mine]


def names(place: Path | str) -> list[str]:
    """The names of a repository's models, candidates left out.

    Raises:
        RepositoryError: it is not there, is empty, or is something else than a repository.
    """
    if (url := remote.url_of(place)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            found = remote.Remote(url, Path(folder)).names()
    else:
        found = repository.folders(Path(place))
    return [name for name in found if not name.endswith(CANDIDATE)]
