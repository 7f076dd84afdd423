"""Asks one runtime the golden inputs, batch by batch."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tlexport.bundle import Golden
from tlexport.errors import SpecError
from tlexport.measure.load import Load, closed_loop, own_cost_s
from tlexport.measure.scenarios import Outcome, Plan, play
from tlexport.runtimes import Runtime
from tlexport.spec import Tensors, rows

MOST_QUESTIONS = 8
"""Different inputs per batch size, asked in turn."""


class Asker:
    """A runtime and its questions: `own_process` tells that nothing else runs in this process.

    `processes` is 0, since it asks from the process it is in; `own_s` is what the loop itself
    takes per request.
    """

    processes = 0

    def __init__(
        self, runtime: Runtime, golden: Golden, batches: Sequence[int], *, own_process: bool = False
    ) -> None:
        self.name = runtime.name
        self.own_s = own_cost_s()
        self.runtime = runtime
        self._questions = {batch: questions(golden, batch) for batch in batches}
        self._own_process = own_process

    def check(self, batch: int) -> None:
        """Ask once and look at the answer.

        Raises:
            SpecError: it has not the declared outputs, dtypes or number of rows.
        """
        answer = self.runtime(self._questions[batch][0])
        for spec in self.runtime.spec.outputs:
            array = answer.get(spec.name)
            wanted = (spec.dtype, (batch,))
            if array is None or (array.dtype.name, array.shape[:1]) != wanted:
                raise SpecError(
                    f"{spec.name!r} as {spec.dtype} with {batch} rows from {self.runtime.name}",
                    got=f"{array.dtype} {list(array.shape)}" if array is not None else "nothing",
                    fix="run `tlexport verify` on it first",
                )

    def warm_up(self, batch: int, requests: int, concurrency: int) -> None:
        """Ask without a clock: so many requests by each of so many at a time."""
        following = self._following(batch)
        if not requests:
            return
        if concurrency == 1:
            for _ in range(requests):
                self.runtime(next(following))
            return
        for _ in range(requests):
            load = closed_loop(
                lambda: self.runtime(next(following)), seconds=0.0, concurrency=concurrency
            )
            if load.first_error is not None and not len(load.latencies_s):
                raise load.first_error

    def closed_loop(self, batch: int, seconds: float, concurrency: int) -> Load:
        """Keep so many requests in flight; see `measure.load.closed_loop`."""
        following = self._following(batch)
        with _no_collection():
            began = time.process_time()
            load = closed_loop(
                lambda: self.runtime(next(following)), seconds=seconds, concurrency=concurrency
            )
            spent = time.process_time() - began
        if not self._own_process:
            return load
        return dataclasses.replace(load, client_s=spent)

    def play(self, batch: int, plan: Plan) -> tuple[Outcome, float | None]:
        """One of MLPerf's scenarios, and this process's time for it where it does nothing else."""
        asked = self._questions[batch]
        with _no_collection():
            began = time.process_time()
            outcome = play(plan, lambda place: self.runtime(asked[place]))
            spent = time.process_time() - began
        return outcome, spent if self._own_process else None

    def counters(self) -> Mapping[str, float]:
        """The server's own totals."""
        return self.runtime.counters()

    def facts(self) -> Mapping[str, object]:
        """What it runs on."""
        return self.runtime.facts()

    def keep_up(self, batch: int, concurrency: int, over: Callable[[], bool]) -> None:
        """Go on asking, uncounted, until it is over: others are not through yet."""
        following = self._following(batch)
        while not over():
            closed_loop(lambda: self.runtime(next(following)), seconds=0.0, concurrency=concurrency)

    def close(self) -> None:
        """Give the runtime back."""
        self.runtime.close()

    def _following(self, batch: int) -> Iterator[Tensors]:
        return _InTurn(self._questions[batch])


class _InTurn(Iterator[Tensors]):
    """Questions in turn, for many threads."""

    def __init__(self, asked: Sequence[Tensors]) -> None:
        self._endless = itertools.cycle(asked)
        self._lock = threading.Lock()

    def __next__(self) -> Tensors:
        with self._lock:
            return next(self._endless)


def questions(golden: Golden, batch: int) -> list[dict[str, np.ndarray]]:
    """Different batches that cover the golden samples in turn, at most MOST_QUESTIONS."""
    samples = len(golden.samples)
    count = min(MOST_QUESTIONS, -(-samples // batch))
    starts = (np.arange(count) * batch)[:, None]
    return [rows(golden.inputs, picked) for picked in (starts + np.arange(batch)) % samples]


@contextlib.contextmanager
def small_heap() -> Iterator[None]:
    """Spare collections what is there already: torch's objects make each take 0.2 s."""
    frozen_before = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now and not again until the end of the block."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
