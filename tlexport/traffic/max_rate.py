"""The highest rate of arrivals that keeps a promise."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from tlexport.measure.load import Load
from tlexport.options import BenchOptions, read_slo
from tlexport.reports import RateTrial, Verdict
from tlexport.traffic.cells import Cell, plan_of

CLOSE = 0.05
"""The search ends where the bracket is this narrow."""
MOST_TRIALS = 8
HOPELESS = 1 / 16
"""A promise that is not kept at this share of what the runtime can do is not kept at all."""
PROBED = 8
"""Requests in flight when it is asked how fast a runtime is at all."""


def find(cell: Cell, options: BenchOptions, tell: Callable[[int, int], None]) -> None:
    """Bisect between nothing and a little more than the runtime can do in a closed loop.

    A rate is kept where LoadGen's verdict is VALID: the percentile is within the promise with 99 %
    confidence, and nothing failed. The cell holds the run at the highest rate that was kept, or
    at the lowest that was tried, and every trial.
    """
    most = cell.about_per_s(PROBED)
    low, high = 0.0, 1.1 * most
    trials: list[RateTrial] = []
    best: tuple[float, list[Load], Verdict | None, dict[str, float], list[float]] | None = None
    while len(trials) < MOST_TRIALS and high - low > CLOSE * high and high > HOPELESS * most:
        rate = (low + high) / 2 if trials else 0.8 * most
        trial = _tried(cell, options, rate)
        trials.append(trial)
        tell(len(trials), MOST_TRIALS)
        if trial.kept:
            low = rate
        else:
            high = rate
        if trial.kept or low == 0.0:
            best = (rate, cell.loads, cell.verdict, cell.counted, cell.own_s)
    assert best is not None, "the bracket is wide at first"
    rate, cell.loads, cell.verdict, cell.counted, cell.own_s = best
    cell.point = msgspec.structs.replace(cell.point, rate_per_s=rate)
    cell.searched = tuple(trials)


def _tried(cell: Cell, options: BenchOptions, rate: float) -> RateTrial:
    slo = read_slo(options.slo)
    outcome = cell.play(plan_of(cell, options, rate), options.rounds)
    waits = outcome.latencies_s
    latency = float(np.quantile(waits, slo.percentile, method="inverted_cdf")) if len(waits) else 0
    return RateTrial(
        rate_per_s=rate,
        latency_ms=latency * 1e3 if len(waits) else None,
        kept=outcome.valid,
        reasons=outcome.reasons,
    )
