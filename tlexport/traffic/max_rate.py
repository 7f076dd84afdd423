"""The highest rate of arrivals that keeps a promise."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from tlexport.measure.load import Load
from tlexport.measure.scenarios import Outcome, most_late
from tlexport.options import BenchOptions, read_slo
from tlexport.reports import RateTrial, Verdict
from tlexport.traffic.cells import Cell, plan_of

CLOSE = 0.05
"""The search ends where the bracket is this narrow."""
MOST_TRIALS = 8
HOPELESS = 1 / 16
"""A promise that is not kept at this share of what the runtime can do is not kept at all."""
FIRST = 100
"""Requests of a longer run that are asked first: too many late among them and it is not played."""
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
    """Play the run, or only its beginning where that has more late than the whole may have."""
    slo = read_slo(options.slo)
    whole = plan_of(cell, options, rate)
    asked = max(whole.queries, int(rate * whole.seconds))
    if asked >= 2 * FIRST:
        outcome = cell.play(
            msgspec.structs.replace(whole, queries=FIRST, seconds=0), options.rounds
        )
        late = outcome.errors + int((outcome.latencies_s * 1e3 > slo.latency_ms).sum())
        allowed = most_late(asked, slo.percentile)
        if late > allowed:
            told = f"{late} of the first {FIRST} were late or failed; of {asked}, {allowed} may be"
            cell.verdict = Verdict(valid=False, reasons=(told,))
            return _trial(rate, outcome, cell.verdict, slo.percentile)
    outcome = cell.play(whole, options.rounds)
    verdict = Verdict(valid=outcome.valid, reasons=outcome.reasons)
    return _trial(rate, outcome, verdict, slo.percentile)


def _trial(rate: float, outcome: Outcome, verdict: Verdict, percentile: float) -> RateTrial:
    waits = outcome.latencies_s
    latency = float(np.quantile(waits, percentile, method="inverted_cdf")) if len(waits) else 0
    return RateTrial(
        rate_per_s=rate,
        latency_ms=latency * 1e3 if len(waits) else None,
        kept=verdict.valid,
        reasons=verdict.reasons,
    )
