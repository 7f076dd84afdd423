"""When to ask: load patterns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tlexport.errors import TlexportError

PAUSE_S = 0.01
"""Wait after an error, so that a dead server is not asked a million times a second."""


@dataclass(frozen=True)
class Load:
    """What came of asking: `latencies_s` float [answered], and how many requests failed.

    `busy_s` is how long the load lasted, until the last answer that counts, and `also` how many
    answers came meanwhile whose latencies do not count: answered / busy_s is the rate at which
    answers came. `client_s` is the processor time that asking took, where the one who asks is a
    process of its own.
    """

    latencies_s: np.ndarray
    errors: int
    busy_s: float
    first_error: TlexportError | None
    client_s: float | None = None
    also: int = 0

    @property
    def answered(self) -> int:
        """All answers that came within `busy_s`."""
        return len(self.latencies_s) + self.also


def joined(loads: Sequence[Load]) -> Load:
    """Loads that were made at the same time, by several processes, as one."""
    known = [load.client_s for load in loads if load.client_s is not None]
    return Load(
        latencies_s=np.concatenate([load.latencies_s for load in loads]),
        errors=sum(load.errors for load in loads),
        busy_s=float(np.mean([load.busy_s for load in loads])),
        first_error=next((load.first_error for load in loads if load.first_error), None),
        client_s=sum(known) if known else None,
        also=sum(load.also for load in loads),
    )


def own_cost_s(seconds: float = 0.02) -> float:
    """What the closed loop itself adds to each latency: the mean where nothing is asked."""
    return float(closed_loop(lambda: None, seconds=seconds).latencies_s.mean())


def closed_loop(
    ask: Callable[[], object],
    *,
    seconds: float,
    concurrency: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Load:
    """Keep `concurrency` requests in flight for `seconds`: each worker asks, waits, asks again.

    Requests begun in time are counted, at least one per worker, however long they take. A worker
    that is through goes on asking, uncounted, until all are: the last requests that count meet
    the same load as the first. A TlexportError is counted and never asked again.

    Args:
        ask: makes one request and returns when the answer is there.
        seconds: how long requests are begun.
        concurrency: requests in flight; above 1 each has a thread of its own.
        clock: seconds that only grow.
        sleep: waits for so many seconds (after an error).

    Raises:
        Exception: whatever `ask` raises that is not a TlexportError.
    """
    crew = _Crew(ask, clock, sleep, concurrency)
    workers = [_Worker(crew) for _ in range(concurrency)]
    if concurrency == 1:
        workers[0].run(seconds)
    else:
        threads = [
            threading.Thread(target=w.run, args=(seconds,), name="closed-loop") for w in workers
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            crew.stop.set()
            crew.start.abort()
    for worker in workers:
        if worker.crash is not None:
            raise worker.crash
    return Load(
        latencies_s=np.array([s for w in workers for s in w.latencies_s]),
        errors=sum(w.errors for w in workers),
        busy_s=max(w.busy_s for w in workers),
        also=sum(w.also for w in workers),
        first_error=next((w.first_error for w in workers if w.first_error is not None), None),
    )


class _Crew:
    """What the workers of one load share."""

    def __init__(
        self,
        ask: Callable[[], object],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        size: int,
    ) -> None:
        self.ask = ask
        self.clock = clock
        self.sleep = sleep
        self.start = threading.Barrier(size)
        self.stop = threading.Event()
        self._busy = size
        self._lock = threading.Lock()

    def through(self) -> None:
        """One worker has its last counted answer; the last one stops them all."""
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self.stop.set()


class _Worker:
    """Keeps one request in flight and notes what came of it."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self.latencies_s: list[float] = []
        self.errors = 0
        self.first_error: TlexportError | None = None
        self.busy_s = 0.0
        self.also = 0
        self.crash: BaseException | None = None

    def run(self, seconds: float) -> None:
        """Ask until the time is over, then on until everyone's counted answers are there."""
        try:
            self._crew.start.wait()
            began = now = self._crew.clock()
            until = began + seconds
            while True:
                now = self._ask(now)
                if now >= until or self._crew.stop.is_set():
                    break
            self.busy_s = now - began
            self._crew.through()
            while not self._crew.stop.is_set():
                self._ask(None)
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.crash = error
            self._crew.stop.set()

    def _ask(self, began: float | None) -> float:
        """Make one request, begun now; its latency counts where `began` is given."""
        try:
            self._crew.ask()
        except TlexportError as error:
            self.errors += 1
            self.first_error = self.first_error or error
            self._crew.sleep(PAUSE_S)
            return self._crew.clock()
        ended = self._crew.clock()
        if began is not None:
            self.latencies_s.append(ended - began)
        elif not self._crew.stop.is_set():  # the last answer that counts is still awaited
            self.also += 1
        return ended
