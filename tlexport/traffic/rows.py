"""What came of the loads, as rows of a report."""

from __future__ import annotations

import numpy as np

from tlexport.measure import stats
from tlexport.options import BenchOptions
from tlexport.reports import BenchRow, Interval, TimeSpent
from tlexport.traffic.cells import Cell, first_error

QUANTILES = (0.5, 0.9, 0.95, 0.99)
DRAWN = np.linspace(0, 1, 51)


def row(cell: Cell, yardstick: Cell, options: BenchOptions) -> BenchRow:
    """One cell, held against the first runtime at the same batch and load.

    Raises:
        TlexportError: it answered nothing at all; the first refusal.
    """
    rng = np.random.default_rng(options.seed)
    waits_ms = [load.latencies_s * 1e3 for load in cell.loads]
    p50, p90, p95, p99 = stats.percentiles(waits_ms, QUANTILES, rng)
    items, seconds = _items(cell), _seconds(cell)
    speedup = _speedup(cell, yardstick, rng)
    errors = sum(load.errors for load in cell.loads)
    spent = _spent(cell, float(np.concatenate(waits_ms).mean()))
    return BenchRow(
        runtime=cell.client.name,
        batch=cell.batch,
        concurrency=cell.point.concurrency,
        rate_per_s=cell.point.rate_per_s,
        clients=cell.client.processes,
        requests=sum(len(wait) for wait in waits_ms),
        errors=errors,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        items_per_s=stats.rate(items, seconds, rng),
        speedup=speedup,
        different=stats.different(speedup),
        queue_ms=_per_request(cell.counted, "queue_ms"),
        compute_ms=_per_request(cell.counted, "compute_ms"),
        facts=dict(cell.client.facts()),
        overhead=spent.client_ms / spent.mean_ms,
        spent=spent,
        quantiles_ms=tuple(np.quantile(np.concatenate(waits_ms), DRAWN).round(4).tolist()),
        steadiness=cell.steadiness(),
        verdict=cell.verdict,
        searched=cell.searched,
        first_error=first_error(cell.loads).got if errors else "",
    )


def _speedup(cell: Cell, yardstick: Cell, rng: np.random.Generator) -> Interval:
    """Of the throughput; of the highest rates where those were searched; else of the medians."""
    if cell is yardstick:
        return Interval(value=1.0, low=1.0, high=1.0)
    items, seconds = _items(cell), _seconds(cell)
    below, below_s = _items(yardstick), _seconds(yardstick)
    if cell.verdict is None:
        return stats.ratio(items, seconds, below / below_s, rng)
    if cell.point.rate_per_s is None or cell.searched:
        return stats.apart(items, seconds, (below, below_s), rng)
    waits, others = ([load.latencies_s for load in c.loads] for c in (cell, yardstick))
    return stats.quicker(waits, others, rng)


def _spent(cell: Cell, mean_ms: float) -> TimeSpent:
    client = min(mean_ms, float(np.mean(cell.own_s)) * 1e3)
    parts = ("compute_ms", "input_ms", "output_ms")
    counted = [_per_request(cell.counted, name) for name in ("queue_ms", *parts)]
    if counted[0] is None and counted[1] is None:
        return TimeSpent(
            mean_ms=mean_ms,
            client_ms=client,
            wire_ms=0.0,
            queue_ms=0.0,
            compute_ms=mean_ms - client,
        )
    queue, *computing = (value or 0.0 for value in counted)
    compute = sum(computing)
    wire = max(0.0, mean_ms - client - queue - compute)
    return TimeSpent(
        mean_ms=mean_ms, client_ms=client, wire_ms=wire, queue_ms=queue, compute_ms=compute
    )


def _seconds(cell: Cell) -> np.ndarray:
    return np.array([load.busy_s for load in cell.loads])


def _items(cell: Cell) -> np.ndarray:
    """Rows answered, by window.

    Raises:
        TlexportError: none at all; the first refusal.
    """
    answered = np.array([load.answered for load in cell.loads]) * float(cell.batch)
    if not answered.any():
        raise first_error(cell.loads)
    return answered


def _per_request(counted: dict[str, float], name: str) -> float | None:
    """The server's own mean; None where it counts nothing."""
    requests = counted.get("requests", 0.0)
    return counted[name] / requests if requests > 0 and name in counted else None
