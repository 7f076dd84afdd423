"""One runtime under one load, and what came of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from tlexport.errors import ServerError, TlexportError
from tlexport.measure import stats
from tlexport.measure.load import Load
from tlexport.measure.scenarios import SURE, Outcome, Plan
from tlexport.options import BenchOptions, read_slo
from tlexport.reports import RateTrial, Steadiness, Verdict
from tlexport.traffic.asker import MOST_QUESTIONS
from tlexport.traffic.clients import Client

logger = logging.getLogger("tlexport.stages.bench")

SETTLE_S = 0.06
"""Pause before each turn, until the idle threads of the runtime before it have stopped spinning.

Measured on two cores after a request of ResNet-18: ONNX Runtime's thread burns 40 ms of CPU
while it waits for more work, PyTorch's (OpenMP) under 10 ms. Spinning itself is left on, as it is
what people run.
"""
ESTIMATE_S = 0.3
"""How long a load lasts that only tells how fast a runtime is about."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """How hard it is asked: requests in flight, and arrivals per second where they are given."""

    concurrency: int = 1
    rate_per_s: float | None = None


@dataclass
class Cell:
    """One runtime, batch size and load: its windows, and what the server counted meanwhile."""

    client: Client
    batch: int
    point: Point
    questions: int = MOST_QUESTIONS
    loads: list[Load] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
    own_s: list[float] = field(default_factory=list)
    verdict: Verdict | None = None
    searched: tuple[RateTrial, ...] = ()

    def warm_up(self, requests: int) -> None:
        """Ask without a clock."""
        self.client.warm_up(self.batch, requests, self.point.concurrency)

    def turn(self, seconds: float) -> None:
        """Measure the closed loop once, and add what the server itself counted meanwhile.

        Where nobody answers before a later turn (a server died), that is an error of the load.
        """
        try:
            self._settle()
        except ServerError as error:
            if not self.loads:
                raise
            self.loads.append(Load(np.empty(0), 1, seconds, error))
            self._warn(self.loads[-1])
            return
        before = self._counters()
        load = self.client.closed_loop(self.batch, seconds, self.point.concurrency)
        self._count(before)
        self.loads.append(load)
        asked = len(load.latencies_s) + load.errors
        own_s = self.client.own_s if load.client_s is None else load.client_s / max(1, asked)
        self.own_s.append(own_s)
        self._warn(load)

    def play(self, plan: Plan, windows: int) -> Outcome:
        """Have LoadGen play a scenario; its run stands for all turns, cut into windows."""
        self._settle()
        before = self.client.counters()
        outcome, spent_s = self.client.play(self.batch, plan)
        self.counted = {}
        self._count(before)
        self.loads = outcome.windows(windows)
        asked = len(outcome.latencies_s) + outcome.errors
        waited_s = float(outcome.own_s.mean()) if len(outcome.own_s) else 0.0
        self.own_s = [waited_s + (spent_s or 0.0) / max(1, asked)]
        self.verdict = Verdict(valid=outcome.valid, reasons=outcome.reasons)
        self._warn(self.loads[-1])
        return outcome

    def about_per_s(self, concurrency: int) -> float:
        """Requests per second, roughly: what a plan is made of.

        Raises:
            TlexportError: none is answered; the first refusal.
        """
        load = self.client.closed_loop(self.batch, ESTIMATE_S, concurrency)
        if not len(load.latencies_s):
            raise first_error([load])
        return load.answered / load.busy_s

    def steadiness(self) -> Steadiness:
        """Whether the last three windows agree; turns are put together, so that four are left."""
        size = max(1, len(self.loads) // 4)
        starts = range(len(self.loads) % size, len(self.loads), size)
        windows = [self.loads[start : start + size] for start in starts]
        rates = [sum(w.answered for w in each) / _busy_s(each) for each in windows]
        waits = [np.concatenate([load.latencies_s for load in each]) for each in windows]
        medians = [float(np.median(wait)) if len(wait) else 0.0 for wait in waits]
        return stats.steadiness(rates, medians)

    def _settle(self) -> None:
        time.sleep(SETTLE_S)
        self.client.check(self.batch)

    def _count(self, before: Mapping[str, float]) -> None:
        for name, total in self._counters().items():
            gained = total - before.get(name, 0.0)
            self.counted[name] = self.counted.get(name, 0.0) + gained

    def _counters(self) -> Mapping[str, float]:
        try:
            return self.client.counters()
        except TlexportError as error:  # it died meanwhile: what was measured is told all the same
            logger.warning("%s tells no statistics any more: %s", self.client.name, error.got)
            return {}

    def _warn(self, load: Load) -> None:
        if load.first_error is not None:
            logger.warning("%s: %d errors: %s", self.client.name, load.errors, load.first_error)


def _busy_s(loads: Sequence[Load]) -> float:
    return sum(load.busy_s for load in loads) or 1e-9


def first_error(loads: Sequence[Load]) -> TlexportError:
    """The first refusal."""
    return next(load.first_error for load in loads if load.first_error is not None)


def plan_of(cell: Cell, options: BenchOptions, rate_per_s: float | None = None) -> Plan:
    """What LoadGen is to do with a cell; `rate_per_s` in place of the cell's own.

    As many queries at least as its early stopping needs for a verdict with 99 % confidence.
    """
    slo = read_slo(options.slo)
    percentile = slo.percentile if options.scenario == "server" else 0.9
    needed = 1.45 * math.log(1 - SURE) / math.log(percentile)
    rate = rate_per_s or cell.point.rate_per_s
    if rate is None:
        rate = 1.15 * cell.about_per_s(cell.point.concurrency)
    return Plan(
        scenario=options.scenario,
        seconds=options.rounds * options.round_s,
        queries=1 if options.scenario == "offline" else max(64, math.ceil(needed)),
        questions=cell.questions,
        rate_per_s=rate,
        percentile=percentile,
        latency_ms=slo.latency_ms,
        workers=cell.point.concurrency,
        seed=options.seed,
    )
