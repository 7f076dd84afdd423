"""Folders that are filled aside, and a repository's lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = ".tlexport.lock"


def stage_place(repository: Path) -> Path | None:
    """Where a new model is made whole: beside the repository, for all in it counts as a model.

    None where that is another disk or not ours to write: then the model's folder is filled in
    place, its configuration first and its version, at one stroke, last.
    """
    beside = repository.absolute().parent
    same_disk = beside.stat().st_dev == repository.stat().st_dev
    return beside if same_disk and os.access(beside, os.W_OK) else None


@contextlib.contextmanager
def aside(place: Path) -> Iterator[Path]:
    """A folder to fill; what a killed packager left is removed first (the lock is held)."""
    for left in place.glob(".tlexport-staging-*"):
        owner = left.name.split("-")[2]
        if not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(dir=place, prefix=f".tlexport-staging-{os.getpid()}-"))
    try:
        stage.chmod(0o755)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def locked(repository: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the repository's lock; the system frees it should this process be killed.

    `waiting` is told where another holds it.
    """
    with (repository / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_if_empty(repository: Path) -> None:
    """Take a repository away that was made for nothing: only the lock, which is held, is in it."""
    if [path.name for path in repository.iterdir()] == [LOCK]:
        (repository / LOCK).unlink()
        repository.rmdir()
