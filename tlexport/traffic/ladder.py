"""How much load a served setting bears within its promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tlexport.measure.load import Load
from tlexport.measure.stats import fewest, steadiness
from tlexport.options import Slo
from tlexport.reports import LoadPoint, TunedSettings, TuneTrial

Loaded = Callable[[float, int], Load]
"""Keeps requests in flight: (seconds, how many)."""

MORE = 1.03
"""Times the throughput that twice the load must bring to go on."""

BEHIND = 0.5
"""Share of the best setting's throughput, at the same load, below which it is given up."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """What to hold and how to measure: loads are doubled from 1 to `concurrency`."""

    slo: Slo
    concurrency: int
    window_s: float
    windows: int


def climb(settings: TunedSettings, rungs: Rungs, load: Loaded, best: TuneTrial | None) -> TuneTrial:
    """Ask more and more at a time, until the promise is broken or nothing is gained any more.

    `load` keeps so many requests in flight for so many seconds.

    Raises:
        TlexportError: every request fails, with the first one's reason.
    """
    points: list[LoadPoint] = []
    stopped = f"{rungs.concurrency} requests in flight"
    for concurrency in _doubled(rungs.concurrency):
        point = _point(load, concurrency, rungs)
        points.append(point)
        if (why := _enough(points, rungs.slo, best)) is not None:
            stopped = why
            break
    kept = [point for point in points if holds(point, rungs.slo)]
    return TuneTrial(
        settings=settings,
        points=tuple(points),
        stopped=stopped,
        best=max(kept, key=lambda point: point.items_per_s, default=None),
    )


def holds(point: LoadPoint, slo: Slo) -> bool:
    """Whether the promise was kept, and every request answered."""
    return point.quantile_ms <= slo.latency_ms and not point.errors


def score(trial: TuneTrial, slo: Slo) -> float:
    """What a search maximises: throughput within the promise; below 0 where it breaks at once."""
    if trial.best is not None:
        return trial.best.items_per_s
    return -min(point.quantile_ms for point in trial.points) / slo.latency_ms


def _enough(points: list[LoadPoint], slo: Slo, best: TuneTrial | None) -> str | None:
    """Why no more needs to be asked, if so."""
    point = points[-1]
    if point.errors:
        return f"{point.errors} requests failed"
    if not holds(point, slo):
        return f"{slo.name} {point.quantile_ms:.3g} ms"
    if len(points) > 1 and point.items_per_s < MORE * points[-2].items_per_s:
        return "no more throughput"
    same = [p for p in best.points if p.concurrency == point.concurrency] if best else []
    if len(points) > 1 and same and point.items_per_s < BEHIND * same[0].items_per_s:
        return "far behind the best"
    return None


def _doubled(most: int) -> Iterator[int]:
    concurrency = 1
    while concurrency < most:
        yield concurrency
        concurrency *= 2
    yield most


def _point(load: Loaded, concurrency: int, rungs: Rungs) -> LoadPoint:
    """Windows until three agree and the quantile can be told, or there were enough of them."""
    loads: list[Load] = []
    needed, stable = fewest(rungs.slo.percentile), False
    while len(loads) < rungs.windows:
        loads.append(load(rungs.window_s, concurrency))
        waits = [each.latencies_s for each in loads]
        if not any(map(len, waits)) and loads[-1].first_error is not None:
            raise loads[-1].first_error
        rates = [each.answered / each.busy_s for each in loads]
        stable = steadiness(
            rates, [float(np.median(wait)) if len(wait) else 0.0 for wait in waits]
        ).stable
        if stable and sum(map(len, waits)) >= needed:
            break
    latencies_ms = np.concatenate(waits) * 1e3
    seconds = sum(each.busy_s for each in loads)
    quantile = np.quantile(latencies_ms, rungs.slo.percentile, method="inverted_cdf")
    return LoadPoint(
        concurrency=concurrency,
        requests=len(latencies_ms),
        errors=sum(each.errors for each in loads),
        items_per_s=sum(each.answered for each in loads) / seconds,
        p50_ms=float(np.median(latencies_ms)),
        quantile_ms=float(quantile),
        sure=len(latencies_ms) >= needed,
        stable=stable,
    )
