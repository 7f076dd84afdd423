"""What each way of running a model costs."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from tlexport.bundle import Bundle, Golden
from tlexport.environment import cores, environment
from tlexport.errors import SpecError, TlexportError
from tlexport.measure import stats
from tlexport.measure.load import Load, closed_loop
from tlexport.options import BenchOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import BenchReport, BenchRow, Interval
from tlexport.runtimes import Runtime, connect, yardstick_of
from tlexport.spec import Tensors, rows

logger = logging.getLogger(__name__)

SETTLE_S = 0.06
"""Pause before each turn, until the idle threads of the runtime before it have stopped spinning.

Measured on two cores after a request of ResNet-18: ONNX Runtime's thread burns 40 ms of CPU
while it waits for more work, PyTorch's (OpenMP) under 10 ms. Spinning itself is left on, as it is
what people run.
"""
QUANTILES = (0.5, 0.9, 0.95, 0.99)
MOST_QUESTIONS = 8
"""Different inputs per batch size, asked in turn."""


def bench(
    bundle: Bundle | Path | str,
    options: BenchOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> BenchReport:
    """Ask all runtimes the same golden inputs with the same threads and load, in turns.

    In each round every runtime has one turn of `round_s` seconds per batch size, in shuffled
    order; a noisy minute hurts all alike, and whole rounds are what the intervals are drawn
    from. Not in the numbers: `warmup` requests per runtime and batch size, a pause of 60 ms and
    one request (whose answer is checked) before each turn, and garbage collection, which runs
    before a turn and is off during it. The clock runs from handing the arrays over until the
    answer's arrays are there. The report is kept as `bench`.

    Raises:
        BundleError: golden samples or artifact are missing, changed or stale.
        TlexportError: a runtime cannot be opened, or answers nothing at all.
        SpecError: an answer has not the declared outputs, dtypes or number of rows.
    """
    options, runtime = options or BenchOptions(), runtime or RuntimeOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    golden = home.golden()
    options = _completed(options, home)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_small_heap())
        cells = []
        for name in options.runtimes:
            opened = connect(name, home, runtime)
            stack.callback(opened.close)
            cells.append([_Cell(opened, _questions(golden, b)) for b in options.batches])
        for cell in itertools.chain.from_iterable(cells):
            cell.warm_up(options.warmup)
        _take_turns(cells, options, progress)
        report = _report(home, options, runtime, cells)
    home.write_report("bench", report)
    return report


def _completed(options: BenchOptions, home: Bundle) -> BenchOptions:
    """The same with its runtimes named; a model without a free batch axis is asked row by row."""
    names = options.runtimes or (yardstick_of(home), "ort@cpu")
    batched = all(tensor.batched for tensor in home.spec.inputs)
    if not batched and options.batches != (1,):
        logger.warning("%s has no free batch axis: batch 1 alone is measured", home.spec.name)
    batches = options.batches if batched else (1,)
    return msgspec.structs.replace(options, runtimes=names, batches=batches)


@dataclass
class _Cell:
    """One runtime at one batch size: its questions, and what its turns gave."""

    runtime: Runtime
    questions: Sequence[Tensors]
    loads: list[Load] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Rows per request."""
        return len(next(iter(self.questions[0].values())))

    def warm_up(self, requests: int) -> None:
        """Ask without a clock."""
        for question in itertools.islice(itertools.cycle(self.questions), requests):
            self.runtime(question)

    def turn(self, options: BenchOptions) -> None:
        """Measure once, and add what the server itself counted meanwhile."""
        time.sleep(SETTLE_S)
        self._check(self.runtime(self.questions[0]))
        following = itertools.cycle(self.questions)
        before = self.runtime.counters()
        with _no_collection():
            load = closed_loop(
                lambda: self.runtime(next(following)),
                seconds=options.round_s,
                concurrency=options.concurrency,
            )
        for name, total in self.runtime.counters().items():
            gained = total - before.get(name, 0.0)
            self.counted[name] = self.counted.get(name, 0.0) + gained
        self.loads.append(load)
        if load.first_error is not None:
            logger.warning("%s: %d errors: %s", self.runtime.name, load.errors, load.first_error)

    def _check(self, answer: Tensors) -> None:
        for spec in self.runtime.spec.outputs:
            array = answer.get(spec.name)
            wanted = (spec.dtype, (self.batch,))
            if array is None or (array.dtype.name, array.shape[:1]) != wanted:
                raise SpecError(
                    f"{spec.name!r} as {spec.dtype} with {self.batch} rows from "
                    f"{self.runtime.name}",
                    got=f"{array.dtype} {list(array.shape)}" if array is not None else "nothing",
                    fix="run `tlexport verify` on it first",
                )


def _questions(golden: Golden, batch: int) -> list[dict[str, np.ndarray]]:
    """Different batches that cover the golden samples in turn, at most MOST_QUESTIONS."""
    samples = len(golden.samples)
    count = min(MOST_QUESTIONS, -(-samples // batch))
    starts = (np.arange(count) * batch)[:, None]
    return [rows(golden.inputs, picked) for picked in (starts + np.arange(batch)) % samples]


def _take_turns(
    cells: Sequence[Sequence[_Cell]], options: BenchOptions, progress: Progress
) -> None:
    """All rounds: `cells` is [runtime][batch size]."""
    rng = np.random.default_rng(options.seed)
    total = options.rounds * len(cells) * len(options.batches)
    done = 0
    for _ in range(options.rounds):
        for place in range(len(options.batches)):
            for chosen in rng.permutation(len(cells)):
                cells[chosen][place].turn(options)
                done += 1
                progress("bench", done, total)


@contextlib.contextmanager
def _small_heap() -> Iterator[None]:
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


def _report(
    home: Bundle,
    options: BenchOptions,
    runtime: RuntimeOptions,
    cells: Sequence[Sequence[_Cell]],
) -> BenchReport:
    digests = {"weights": home.manifest.weights_sha256, "golden": home.manifest.golden_sha256}
    if runtime.artifact in home.artifacts():
        digests[runtime.artifact] = home.artifact(runtime.artifact).sha256
    return BenchReport(
        model=home.spec.name,
        load=f"closed loop, {options.concurrency} in flight",
        threads=runtime.threads or cores(),
        instances=runtime.instances,
        rounds=options.rounds,
        round_s=options.round_s,
        rows=tuple(
            _row(line[place], cells[0][place], options)
            for place in range(len(options.batches))
            for line in cells
        ),
        digests=digests,
        environment=environment(),
    )


def _row(cell: _Cell, yardstick: _Cell, options: BenchOptions) -> BenchRow:
    rng = np.random.default_rng(options.seed)
    waits_ms = [load.latencies_s * 1e3 for load in cell.loads]
    p50, p90, p95, p99 = stats.percentiles(waits_ms, QUANTILES, rng)
    items, seconds = _items(cell), np.array([load.busy_s for load in cell.loads])
    speedup = _speedup(cell, yardstick, rng)
    counted = cell.counted
    return BenchRow(
        runtime=cell.runtime.name,
        batch=cell.batch,
        concurrency=options.concurrency,
        requests=sum(len(wait) for wait in waits_ms),
        errors=sum(load.errors for load in cell.loads),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        items_per_s=stats.rate(items, seconds, rng),
        speedup=speedup,
        different=stats.different(speedup),
        queue_ms=_per_request(counted, "queue_ms"),
        compute_ms=_per_request(counted, "compute_ms"),
        facts=dict(cell.runtime.facts()),
    )


def _speedup(cell: _Cell, yardstick: _Cell, rng: np.random.Generator) -> Interval:
    if cell is yardstick:
        return Interval(value=1.0, low=1.0, high=1.0)
    seconds, below = (np.array([load.busy_s for load in c.loads]) for c in (cell, yardstick))
    return stats.ratio(_items(cell), seconds, _items(yardstick) / below, rng)


def _items(cell: _Cell) -> np.ndarray:
    """Rows answered, by round.

    Raises:
        TlexportError: none at all; the first refusal.
    """
    answered = np.array([len(load.latencies_s) for load in cell.loads]) * float(cell.batch)
    if not answered.any():
        raise _first_error(cell.loads)
    return answered


def _first_error(loads: Sequence[Load]) -> TlexportError:
    return next(load.first_error for load in loads if load.first_error is not None)


def _per_request(counted: dict[str, float], name: str) -> float | None:
    """The server's own mean; None where it counts nothing."""
    requests = counted.get("requests", 0.0)
    return counted[name] / requests if requests > 0 and name in counted else None
