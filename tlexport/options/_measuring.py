"""What a caller may ask for when the cost is measured."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check
from tlexport.errors import OptionError

Count = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]
SLO = re.compile(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(us|ms|s)")
IN_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """A promise: the share `percentile` of all requests is answered within `latency_ms`."""

    percentile: float
    latency_ms: float

    @property
    def name(self) -> str:
        """The percentile as people write it: p99, p99.9."""
        return f"p{self.percentile * 100:g}"

    def __str__(self) -> str:
        return f"{self.name}={self.latency_ms:g}ms"


def read_slo(text: str) -> Slo:
    """Read "p99=20ms".

    Raises:
        OptionError: it is written otherwise.
    """
    match = SLO.fullmatch(text.replace(" ", ""))
    if match is None or not float(match[1]) >= 50 or not float(match[2]) > 0:
        raise OptionError(
            "a percentile from p50 to p99.9 and a time, such as p99=20ms",
            got=f"--slo {text!r}",
            fix="write it like p99=20ms, p95=1.5s or p90=800us",
        )
    latency_ms = float(match[2]) * IN_MS[match[3]]
    return Slo(percentile=float(match[1]) / 100, latency_ms=latency_ms)


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, how often, of whom."""

    runtimes: Annotated[
        tuple[str, ...],
        Meta(
            description="NAME@WHERE, the first is the yardstick; default: the original (eager@cpu, "
            "or an imported ONNX file unoptimised) and ort@cpu"
        ),
    ] = ()
    batches: Annotated[tuple[Count, ...], Meta(description="batch sizes", min_length=1)] = (1, 8)
    scenario: Annotated[
        Literal["closed-loop", "single-stream", "server", "offline"],
        Meta(
            description="closed-loop: runtimes take turns with so many requests in flight; the "
            "others are MLPerf's, by its LoadGen: one request after the other, Poisson arrivals "
            "at --rate, all requests at once"
        ),
    ] = "closed-loop"
    concurrencies: Annotated[
        tuple[Count, ...],
        Meta(description="requests in flight (closed-loop, offline)", min_length=1),
    ] = (1,)
    rates: Annotated[
        tuple[Rate, ...], Meta(description="requests that arrive per second (server)")
    ] = ()
    slo: Annotated[
        str, Meta(description="what `server` has to keep, as p99=20ms; LoadGen's verdict is on it")
    ] = "p99=100ms"
    find_max_rate: Annotated[
        bool, Meta(description="find the highest rate of `server` that keeps --slo, by bisection")
    ] = False
    rounds: Annotated[
        int, Meta(description="turns that every runtime takes; an interval needs 6", ge=6)
    ] = 10
    max_rounds: Annotated[
        int, Meta(description="turns at most while it is not stable; 0: twice --rounds", ge=0)
    ] = 0
    round_s: Annotated[float, Meta(description="seconds per turn", gt=0)] = 0.5
    warmup: Annotated[
        int, Meta(description="requests before the clock starts, per runtime and batch", ge=0)
    ] = 5
    clients: Annotated[
        int,
        Meta(
            description="processes that ask a server; 0: as many as half the cores, at most one "
            "per request in flight",
            ge=0,
        ),
    ] = 0
    seed: Annotated[int, Meta(description="order of the turns and the bootstrap's draws", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        read_slo(self.slo)
        if self.max_rounds and self.max_rounds < self.rounds:
            raise OptionError(
                f"--max-rounds of at least --rounds {self.rounds}",
                got=f"--max-rounds {self.max_rounds}",
                fix="raise it, or leave it out",
            )
        self._hold_load()

    def _hold_load(self) -> None:
        """Refuse a load that the scenario does not have, or does not have enough of."""
        server, searched = self.scenario == "server", self.find_max_rate
        one_by_one = self.scenario in ("server", "single-stream")
        faults = (
            (self.rates and not server, "--rate with --scenario server alone", "--rate"),
            (searched and not server, "--find-max-rate with --scenario server", "--find-max-rate"),
            (searched and self.rates, "--find-max-rate or --rate", "both"),
            (server and not self.rates and not searched, "--rate or --find-max-rate", "neither"),
            (one_by_one and self.concurrencies != (1,), "no --concurrency", "--concurrency"),
        )
        for found, expected, got in faults:
            if found:
                raise OptionError(
                    f"{expected} (this is --scenario {self.scenario})",
                    got=got,
                    fix="closed-loop and offline take --concurrency; server takes --rate R or "
                    "--find-max-rate",
                )

    @property
    def most_rounds(self) -> int:
        """Turns of each runtime at most."""
        return self.max_rounds or 2 * self.rounds
