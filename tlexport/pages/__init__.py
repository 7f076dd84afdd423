"""Reports as pages for people: one self-contained file each."""

from __future__ import annotations

from pathlib import Path

from tlexport.errors import OptionError
from tlexport.files import hold_writable


def hold_place(path: Path) -> None:
    """Tell before the work, not after it, that the page cannot be written.

    Raises:
        OptionError: its folder is missing or not to be written to.
    """
    try:
        hold_writable(path)
    except OSError as error:
        raise OptionError(
            f"a place for the page {str(path)!r}",
            got=f"{error.strerror or error}",
            fix="name a file in a folder that exists and may be written to",
        ) from error
