"""Bench reports made by hand."""

from __future__ import annotations

import numpy as np

from tlexport.environment import environment
from tlexport.reports import (
    BenchReport,
    BenchRow,
    Interval,
    RateTrial,
    Steadiness,
    TimeSpent,
    Verdict,
)


def interval(value, spread=0.02):
    return Interval(value=value, low=value * (1 - spread), high=value * (1 + spread))


def row(runtime="ort@cpu", **changes):
    """A row whose median latency is `p50` milliseconds (10)."""
    p50 = changes.pop("p50", 10.0)
    values = {
        "runtime": runtime,
        "batch": 1,
        "concurrency": 1,
        "requests": 400,
        "errors": 0,
        "p50_ms": interval(p50),
        "p90_ms": interval(p50 * 1.2),
        "p95_ms": interval(p50 * 1.3),
        "p99_ms": interval(p50 * 1.6),
        "items_per_s": interval(1000 / p50),
        "speedup": interval(10 / p50),
        "different": p50 != 10.0,
        "queue_ms": None,
        "compute_ms": None,
        "facts": {"threads": 2, "labels": ["cat"], "artifact_sha256": "a" * 64},
        "overhead": 0.01,
        "spent": TimeSpent(
            mean_ms=p50, client_ms=p50 * 0.01, wire_ms=0.0, queue_ms=0.0, compute_ms=p50 * 0.99
        ),
        "quantiles_ms": tuple((p50 * np.linspace(0.8, 2, 51)).tolist()),
        "steadiness": Steadiness(stable=True, rate=0.01, latency=0.02),
    }
    return BenchRow(**(values | changes))


def report(*rows, **changes):
    values = {
        "model": "tiny",
        "load": "closed loop, 1 in flight",
        "threads": 2,
        "instances": 1,
        "rounds": 10,
        "round_s": 0.5,
        "rows": rows or (row(),),
        "digests": {"weights": "c" * 64, "golden": "d" * 64, "onnx-fp32": "a" * 64},
        "environment": environment(),
        "transfer": "copies to and from a device or a server lie inside the clock",
    }
    return BenchReport(**(values | changes))


def everything():
    """A report that has something of each kind."""
    served = "triton@http://some-long-host-name.example:45678"
    return report(
        row("eager@cpu"),
        row("ort@cpu", p50=6.0),
        row(
            served,
            p50=7.0,
            clients=2,
            overhead=0.12,
            queue_ms=1.0,
            compute_ms=5.0,
            spent=TimeSpent(
                mean_ms=7.0, client_ms=0.84, wire_ms=0.16, queue_ms=1.0, compute_ms=5.0
            ),
            steadiness=Steadiness(stable=False, rate=0.4, latency=0.2),
            errors=3,
            first_error="connection refused <script>alert(1)</script>",
        ),
        row("eager@cpu", batch=8, p50=80.0),
        row("ort@cpu", batch=8, p50=43.0, concurrency=1),
        row(
            "triton@here:1",
            p50=12.0,
            rate_per_s=84.25,
            verdict=Verdict(valid=False, reasons=("Early stopping not satisfied",)),
            searched=(
                RateTrial(rate_per_s=84.25, latency_ms=19.0, kept=True, reasons=()),
                RateTrial(rate_per_s=99.0, latency_ms=31.0, kept=False, reasons=("too slow",)),
            ),
        ),
        slo="p99=20ms",
        gpus=({"name": "a card", "power_w": 71.5},),
    )
