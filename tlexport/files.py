"""Whole files or none: atomic writes and digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tlexport.errors import BundleError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(value: object) -> str:
    """Hex SHA-256 of a value's JSON with sorted keys: equal values, equal digest."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old file or the new one, never a part.

    Raises:
        BundleError: the folder is read-only, the disk is full, or the name is taken by a folder.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # no folder, no file in it
            temporary.unlink()
    sync_folder(path.parent)


def _beside(path: Path, mark: str = "") -> Path:
    """A hidden name next to `path`; known before anything has it, so that it can be cleared away.

    A signal may come between a file's making and the line after it.
    """
    return path.parent / f".{path.name}.{mark}{secrets.token_hex(6)}"


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` that is gone after the block, wherever a signal stops it."""
    folder = parent / f"{prefix}{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; it becomes `path` when the block ends well.

    With `replace`, an older folder of that name is set aside first and deleted last.

    Raises:
        BundleError: `path` exists and `replace` is false, or it cannot be written.
    """
    if path.exists() and not replace:
        raise BundleError(
            f"a new folder {str(path)!r}",
            got="it exists already",
            fix="name another folder, or pass --force to replace it",
        )
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync_file(file)
        _swap(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    aside = _beside(path, "old.")
    older = aside / path.name
    try:
        if path.exists():
            aside.mkdir()
            path.rename(older)
        new.rename(path)
    except BaseException:
        if older.exists() and not path.exists():
            older.rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Have the disk hold the file's bytes before anyone is told of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the disk hold the folder's entries (a rename is not durable without)."""
    with contextlib.suppress(OSError):  # some network file systems refuse it; the data is synced
        sync_file(path)


def hold_writable(path: Path) -> None:
    """Raise the system's own error now if nothing could be written to `path` later.

    What is asked is the nearest folder above that exists; nothing is left there.
    """
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    with tempfile.TemporaryDirectory(dir=above, prefix=f".{path.name}."):
        pass


def cannot_write(path: Path, error: OSError) -> BundleError:
    """The three-part error for a write that the system refused."""
    several = error.args[0] if isinstance(error, shutil.Error) else ()  # (from, to, why) each
    cached = path.absolute().is_relative_to(cache_folder().absolute())
    choose = "set TLEXPORT_CACHE to" if cached else "choose"
    return BundleError(
        f"to write {str(path)!r}",
        got=error.strerror or (str(several[0][2]) if several else str(error)),
        fix=f"free space or {choose} a folder you may write to, then run the same command again",
    )


def is_there(path: Path) -> bool:
    """Whether something of that name exists; False, not an error, where the name is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether it is a file; False, not an error, where the name is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def text_of(path: Path | str) -> str:
    """A path as text that JSON can hold: bytes of its name that are no UTF-8 become "?"."""
    return str(path).encode(errors="replace").decode()


def cache_folder() -> Path:
    """Where features and the embedded server are kept: $TLEXPORT_CACHE, else the user's cache."""
    if named := os.environ.get("TLEXPORT_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tlexport"
