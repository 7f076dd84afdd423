"""What was found when a model was asked."""

from __future__ import annotations

import msgspec

from tlexport.reports._interval import Interval


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
