"""What was found when the cost was measured."""

from __future__ import annotations

from typing import Any

import msgspec

from tlexport.environment import Environment
from tlexport.reports._interval import Interval


class Steadiness(msgspec.Struct, frozen=True, kw_only=True):
    """The last three windows: the largest less the smallest, as a share of the smallest.

    `stable` where both are within 10 %. `latency` is of the medians; None where there is none.
    """

    stable: bool
    rate: float
    latency: float | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """LoadGen's own: VALID or not, and in its words why not."""

    valid: bool
    reasons: tuple[str, ...]


class RateTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the search for the highest rate; `latency_ms` is at the promised percentile."""

    rate_per_s: float
    latency_ms: float | None
    kept: bool
    reasons: tuple[str, ...]


class TimeSpent(msgspec.Struct, frozen=True, kw_only=True):
    """Where the mean request's time went, in milliseconds.

    `client` is what asking itself took (see `overhead` of the row), `queue` and `compute` are the
    server's own, with its copying of inputs and outputs counted to compute; `wire` is the rest.
    In process there is no wire, and all but the client is compute.
    """

    mean_ms: float
    client_ms: float
    wire_ms: float
    queue_ms: float
    compute_ms: float


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime under one load; a percentile is None where there were too few requests.

    `speedup` is the throughput relative to the first runtime at the same batch and load; of
    `server`, where the rate is given, the first's median latency over this one's; of a search, its
    highest rate. `queue_ms` and `compute_ms` are the server's own mean per request. `overhead` is
    the client's share of the mean latency, `quantiles_ms` the latency at 0, 2, ... 100 %.
    """

    runtime: str
    batch: int
    concurrency: int
    requests: int
    errors: int
    p50_ms: Interval | None
    p90_ms: Interval | None
    p95_ms: Interval | None
    p99_ms: Interval | None
    items_per_s: Interval
    speedup: Interval
    different: bool
    queue_ms: float | None
    compute_ms: float | None
    facts: dict[str, Any]
    rate_per_s: float | None = None
    clients: int = 0
    overhead: float = 0.0
    spent: TimeSpent | None = None
    quantiles_ms: tuple[float, ...] = ()
    steadiness: Steadiness | None = None
    verdict: Verdict | None = None
    searched: tuple[RateTrial, ...] = ()
    first_error: str = ""


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What each way of running the model costs, measured in turns.

    `transfer` says which copying lies inside the clock, `gpus` what NVML told of each card.
    """

    model: str
    load: str
    threads: int
    instances: int
    rounds: int
    round_s: float
    rows: tuple[BenchRow, ...]
    digests: dict[str, str]
    environment: Environment
    scenario: str = "closed-loop"
    slo: str = ""
    transfer: str = ""
    gpus: tuple[dict[str, Any], ...] = ()

    @property
    def unstable(self) -> tuple[BenchRow, ...]:
        """Rows whose last three windows are not within 10 %."""
        return tuple(r for r in self.rows if r.steadiness is not None and not r.steadiness.stable)
