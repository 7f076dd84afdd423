"""A lock in an object store, kept by renewing it."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tlexport.errors import RepositoryError

OBJECT = ".tlexport.lock"
LEASE_S = 60.0
"""A holder that has not renewed it for so long, by the clock of who waits, is dead."""
RENEW_S = LEASE_S / 4
POLL_S = 0.5

Mark = dict[str, str]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the lock; `free` once released. `beat` makes every renewal another object."""

    host: str = ""
    pid: int = 0
    free: bool = False
    beat: str = ""


def mark(found: Mapping[str, Any]) -> Mark:
    """Which object it was that was read or put: one in its place is another.

    S3 and Azure know it again by its tag, Google Cloud by its version (generation).
    """
    return {key: found[key] for key in ("e_tag", "version") if found[key] is not None}


class Lease:
    """One object, written only by those who know what it is now: two cannot both have it."""

    def __init__(self, objects: Any, store: Any) -> None:
        self._objects, self._store = objects, store
        self._refused = (
            objects.exceptions.PreconditionError,
            objects.exceptions.AlreadyExistsError,
        )
        self._mark: Mark | None = None
        self._lost = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, waiting: Callable[[], None]) -> None:
        """Wait until nobody else holds it; `waiting` is told if somebody does."""
        watched, since, told = None, time.monotonic(), False
        while True:
            found, seen = self._read()
            if seen != watched:
                watched, since = seen, time.monotonic()
            stale = time.monotonic() - since > LEASE_S
            if (found is None or found.free or stale or _dead(found)) and self._write(seen):
                break
            if not told:
                told = True
                waiting()
            time.sleep(POLL_S)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Refuse to go on where the lock was lost.

        Raises:
            RepositoryError: somebody else took it, for it was not renewed in time.
        """
        if self._lost:
            raise RepositoryError(
                "the lock of the repository to be held until the work is done",
                got=f"another has taken it: it was not renewed for {LEASE_S:g} s",
                fix="run the command again",
            )

    def release(self) -> None:
        """Let the next one have it."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost:
            self._write(self._mark, free=True)

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                self._lost = not self._write(self._mark)
            except self._objects.exceptions.BaseError:
                continue  # the next beat may come through
            if self._lost:
                return

    def _read(self) -> tuple[Holder | None, Mark | None]:
        try:
            found = self._objects.get(self._store, OBJECT)
        except FileNotFoundError:
            return None, None
        seen = mark(found.meta)
        try:
            return msgspec.json.decode(bytes(found.bytes()), type=Holder), seen
        except msgspec.DecodeError:  # nobody's that we know
            return Holder(), seen

    def _write(self, seen: Mark | None, *, free: bool = False) -> bool:
        """Put it in place of the object that was `seen`; False where it is another by now."""
        holder = Holder(host=_host(), pid=os.getpid(), free=free, beat=uuid.uuid4().hex)
        content = msgspec.json.encode(holder)
        try:
            put = self._objects.put(self._store, OBJECT, content, mode=seen or "create")
        except self._refused:
            return False
        self._mark = mark(put)
        return True


def _host() -> str:
    """The machine since it was started: process numbers mean nothing on another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _dead(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    here = holder.host == _host() and Path("/proc/self").exists()
    return here and not Path(f"/proc/{holder.pid}").exists()
