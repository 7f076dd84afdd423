"""A few things for many threads, first come, first served."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Turns(Generic[Thing]):
    """Lends each thing to one thread at a time; who waits longest is next.

    A semaphore or a queue would let the thread that just gave back take again at once, and the
    others' waits grow without bound.
    """

    def __init__(self, things: Iterable[Thing]) -> None:
        self._free = deque(things)
        self._waiting: deque[queue.SimpleQueue[Thing]] = deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[Thing]:
        """Wait for a thing, and have it for the block."""
        place: queue.SimpleQueue[Thing] = queue.SimpleQueue()
        with self._lock:
            if self._free:
                place.put(self._free.popleft())
            else:
                self._waiting.append(place)
        thing = place.get()
        try:
            yield thing
        finally:
            self._back(thing)

    def clear(self) -> None:
        """Let go of what nobody has at the moment."""
        with self._lock:
            self._free.clear()

    def _back(self, thing: Thing) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(thing)
            else:
                self._free.append(thing)
