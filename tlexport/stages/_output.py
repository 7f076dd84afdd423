"""Where a new bundle goes, and what its model is called."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tlexport.errors import BundleError
from tlexport.files import cannot_write, hold_writable


def refuse_existing(output: Path, *, force: bool) -> None:
    """Tell before the work, not after it, that the bundle's place is taken or cannot be written.

    Raises:
        BundleError: it exists and `force` is false, it is something else than a bundle, or the
            folder above it is a file or not to be written to.
    """
    try:
        taken = os.path.lexists(output)
        if not taken:
            hold_writable(output)
    except OSError as error:
        raise cannot_write(output, error) from error
    if not taken:
        return
    if not force:
        raise BundleError(
            f"a new folder {str(output)!r}",
            got="it exists already",
            fix="name another folder with -o, or pass --force to replace it",
        )
    if not (output / "bundle.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(
            f"a bundle to replace in {str(output)!r}",
            got="something that is no bundle",
            fix="name another folder with -o: --force replaces bundles only",
        )


def model_name(folder: Path) -> str:
    """A model name made of a bundle's folder: my cats.bundle -> my_cats."""
    stem = folder.resolve().name.removesuffix(".bundle")
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_.-") or "model"
