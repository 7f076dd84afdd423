"""Which processes and which shared memory there are."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def regions(pid):
    """Shared memory of the servers that a process started."""
    return set(Path("/dev/shm").glob(f"tlexport_{pid}_*"))


@contextlib.contextmanager
def no_new_regions():
    """Servers started inside leave no shared memory; others may be running beside."""
    before = regions(os.getpid())
    yield
    assert regions(os.getpid()) <= before
