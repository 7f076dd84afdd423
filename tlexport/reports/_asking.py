"""What was found when a model was asked."""

from __future__ import annotations

from typing import Any

import msgspec

from tlexport.environment import Environment
from tlexport.reports._interval import Interval


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime under one load; a percentile is None where there were too few requests.

    `speedup` is the throughput relative to the first runtime at the same batch. `queue_ms` and
    `compute_ms` are the server's own mean per request.
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


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What each way of running the model costs, measured in turns."""

    model: str
    load: str
    threads: int
    instances: int
    rounds: int
    round_s: float
    rows: tuple[BenchRow, ...]
    digests: dict[str, str]
    environment: Environment


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class of an evaluation."""

    label: str
    examples: int
    precision: float
    recall: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime against another on the same examples.

    `difference` is of the accuracies, the first less the second (95 % interval for paired
    proportions); `changed` are decisions that are others, `right` and `wrong` those of them that
    the change made right or wrong, `largest_change` is of any label's probability.
    """

    runtime: str
    accuracy: float
    difference: Interval
    changed: int
    right: int
    wrong: int
    largest_change: float


class EvaluateReport(msgspec.Struct, frozen=True, kw_only=True):
    """How well a runtime answers labelled examples; `confusion` is [true][predicted].

    `calibration_error` is the expected calibration error over 15 bins; `top5` is None for five
    labels or fewer, `against` where there was nobody to compare with.
    """

    runtime: str
    data: str
    examples: int
    accuracy: Interval
    macro_f1: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    top5: float | None
    against: Agreement | None
    skipped: tuple[str, ...]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The likeliest labels of one input, best first, or why it could not be read."""

    source: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""


class PredictReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answers in the order of the questions."""

    runtime: str
    predictions: tuple[Prediction, ...]
