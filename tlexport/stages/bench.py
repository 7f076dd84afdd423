"""What each way of running a model costs."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from tlexport.bundle import Bundle
from tlexport.environment import cores, environment
from tlexport.options import BenchOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import BenchReport
from tlexport.runtimes import yardstick_of
from tlexport.traffic import gpus, max_rate
from tlexport.traffic.asker import questions, small_heap
from tlexport.traffic.cells import Cell, Point, plan_of
from tlexport.traffic.clients import Client, Order, client
from tlexport.traffic.rows import row

logger = logging.getLogger(__name__)

TRANSFER = "copies to and from a device or a server lie inside the clock"
Grid = list[list[Cell]]
"""[batch size and load][runtime]: a line is what is held against each other."""


def bench(
    bundle: Bundle | Path | str,
    options: BenchOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> BenchReport:
    """Ask all runtimes the same golden inputs with the same threads and load.

    In the closed loop they take turns: in each round every runtime has one turn of `round_s`
    seconds per batch size and load, in shuffled order; a noisy minute hurts all alike, and whole
    rounds are what the intervals are drawn from. After `rounds` of them it goes on, up to
    `max_rounds`, until the last three windows of each agree. MLPerf's scenarios are one run of
    LoadGen each, of `rounds` x `round_s` seconds at least, cut into as many windows.
    Not in the numbers: `warmup` requests per runtime, batch size and load, a pause of 60 ms and
    one request (whose answer is checked) before each turn, and garbage collection, which runs
    before a turn and is off during it. The clock runs from handing the arrays over until the
    answer's arrays are there. The report is kept as `bench`.

    Raises:
        BundleError: golden samples or artifact are missing, changed or stale.
        TlexportError: a runtime cannot be opened, or answers nothing at all.
        SpecError: an answer has not the declared outputs, dtypes or number of rows.
        MissingDependency: a scenario of MLPerf's without its LoadGen.
    """
    options, runtime = options or BenchOptions(), runtime or RuntimeOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    home.golden()
    options = _completed(options, home)
    with contextlib.ExitStack() as stack:
        stack.enter_context(small_heap())
        clients = []
        for name in options.runtimes:
            order = Order(
                runtime=name, bundle=str(home.root), options=runtime, batches=options.batches
            )
            opened = client(home, order, options.clients, max(options.concurrencies))
            stack.callback(opened.close)
            clients.append(opened)
        grid = _grid(home, options, clients)
        for cell in (cell for line in grid for cell in line):
            cell.warm_up(options.warmup)
        with gpus.watched() as watch:
            _measure(grid, options, progress)
        report = msgspec.structs.replace(
            _report(home, options, runtime, grid), gpus=tuple(map(dict, watch.told()))
        )
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


def _points(options: BenchOptions) -> list[Point]:
    if options.scenario == "server":
        return [Point(rate_per_s=rate) for rate in options.rates] or [Point()]
    return [Point(concurrency=count) for count in options.concurrencies]


def _grid(home: Bundle, options: BenchOptions, clients: Sequence[Client]) -> Grid:
    golden = home.golden()
    counts = {batch: len(questions(golden, batch)) for batch in options.batches}
    return [
        [Cell(client, batch, point, counts[batch]) for client in clients]
        for batch in options.batches
        for point in _points(options)
    ]


def _measure(grid: Grid, options: BenchOptions, progress: Progress) -> None:
    if options.scenario == "closed-loop":
        _take_turns(grid, options, progress)
        return
    cells = [cell for line in grid for cell in line]
    for done, cell in enumerate(cells):
        progress("bench", done, len(cells))
        if options.find_max_rate:
            told = f"{cell.client.name}, batch {cell.batch}"
            max_rate.find(cell, options, functools.partial(progress, told))
        else:
            cell.play(plan_of(cell, options), options.rounds)
    progress("bench", len(cells), len(cells))


def _take_turns(grid: Grid, options: BenchOptions, progress: Progress) -> None:
    """All rounds, and more while the last windows do not agree."""
    rng = np.random.default_rng(options.seed)
    each = sum(map(len, grid))
    for done in range(options.most_rounds):
        rounds = options.rounds
        if done >= rounds:
            if all(cell.steadiness().stable for line in grid for cell in line):
                break
            rounds = done + 1
        for place, line in enumerate(grid):
            for turn, chosen in enumerate(rng.permutation(len(line))):
                line[chosen].turn(options.round_s)
                so_far = done * each + sum(map(len, grid[:place])) + turn + 1
                progress("bench", so_far, rounds * each)


def _report(
    home: Bundle, options: BenchOptions, runtime: RuntimeOptions, grid: Grid
) -> BenchReport:
    digests = {"weights": home.manifest.weights_sha256, "golden": home.manifest.golden_sha256}
    if runtime.artifact in home.artifacts():
        digests[runtime.artifact] = home.artifact(runtime.artifact).sha256
    return BenchReport(
        model=home.spec.name,
        load=_load(options),
        threads=runtime.threads or cores(),
        instances=runtime.instances,
        rounds=max(len(cell.loads) for line in grid for cell in line),
        round_s=options.round_s,
        rows=tuple(row(cell, line[0], options) for line in grid for cell in line),
        digests=digests,
        environment=environment(),
        scenario=options.scenario,
        slo=options.slo if options.scenario == "server" else "",
        transfer=TRANSFER,
    )


def _load(options: BenchOptions) -> str:
    """The load in words."""
    in_flight = f"{', '.join(map(str, options.concurrencies))} in flight"
    if options.scenario == "closed-loop":
        return f"closed loop, {in_flight}"
    if options.scenario == "single-stream":
        return "LoadGen single-stream, one after the other"
    if options.scenario == "offline":
        return f"LoadGen offline, all at once, {in_flight}"
    rates = ", ".join(f"{rate:g}" for rate in options.rates)
    return (
        f"LoadGen server, {f'{rates} per second' if rates else f'highest rate for {options.slo}'}"
    )
