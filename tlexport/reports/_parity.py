"""What was found when a model was held to its original."""

from __future__ import annotations

import msgspec

from tlexport.environment import Environment
from tlexport.reports._interval import Interval


class ShapeParity(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one output at one batch size, and the worst difference in it.

    `check` is one of: original (the original alone against itself in a batch), golden (the
    reference against the stored outputs), answers (the candidate against the reference), distinct,
    alone, permuted, repeated (the candidate against itself), weights (the file's against the
    bundle's), or a probe such as "length 1" or "images all 255" (against the reference, and a
    golden row's own answer). `error` is the norm of the worst row's difference to the original in
    float64, `own` that row's noise floor and `ratio` error / own, the number that is judged.
    `scale` is the largest |value| the reference gives and `max_rel` max_abs / scale; `worst_index`
    is (golden sample, element ...) of the largest difference. Numbers are None where there was
    nothing to subtract, `error`, `own` and `ratio` also where another criterion was asked for, and
    `ratio` where the floor is 0.
    """

    check: str
    batch: int
    output: str
    max_abs: float | None
    max_rel: float | None
    scale: float
    worst_index: tuple[int, ...]
    passed: bool
    reason: str = ""
    error: float | None = None
    own: float | None = None
    ratio: float | None = None


class LabelFlip(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that the candidate labels otherwise; `margin` is the reference's own."""

    sample: int
    output: str
    reference: str
    candidate: str
    margin: float
    forgiven: bool


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions on the golden samples; `top5` is the mean share of five labels in common.

    `largest_change` is of any label's probability. Both are None where no label has one.
    """

    samples: int
    flips: int
    top5: float | None
    largest_change: float | None


class AccuracyChange(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate against reference on labelled examples.

    `difference` is candidate less reference (95 % interval for paired proportions), `right` and
    `wrong` are decisions that the candidate alone has right or wrong, `p_value` is McNemar's,
    exact, that both are as often right.
    """

    data: str
    examples: int
    reference: float
    candidate: float
    difference: Interval
    right: int
    wrong: int
    p_value: float
    largest_change: float
    allowed: float
    passed: bool


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """What is at fault, by a stable name, where it is, and what to do."""

    name: str
    told: str
    fix: str


class GraphStep(msgspec.Struct, frozen=True, kw_only=True):
    """One value of the graph against the same value of the reference.

    `error` is the norm of the difference and `own` the noise floor there, both as a share of the
    value's norm, `ratio` error / own, None where it is not finite; `low` and `high` are the range
    of the node's inputs.
    """

    node: str
    operator: str
    value: str
    module: str
    error: float | None
    own: float
    ratio: float | None
    low: float | None
    high: float | None
    finite: bool


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """The graph node by node: `first` is the first value beyond the floor; `compared` of `values`.

    `against` says whose values it was held against. `suspects` are the operators between the last
    sound values and `first` that the reference has not, and `before_weights` says that no learned
    weight comes above it.
    """

    against: str
    values: int
    compared: int
    first: GraphStep | None
    steps: tuple[GraphStep, ...]
    overflow: tuple[GraphStep, ...]
    suspects: tuple[str, ...] = ()
    before_weights: bool = False


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate answers as the reference does, bound to the file's digest.

    `criterion` says what was judged by: "noise floor" (`factor` times the rounding of the
    original in this precision), "share of scale" (`tolerance`) or "atol and rtol". `ratio` and
    `own` are of the worst golden answer: its error in floors, and the floor as a share of its norm.
    """

    reference: str
    candidate: str
    artifact: str
    artifact_sha256: str
    weights_sha256: str
    precision: str = "fp32"
    criterion: str = "share of scale"
    factor: float | None = None
    tolerance: float | None = None
    atol: float | None = None
    rtol: float | None = None
    samples: int
    checks: tuple[ShapeParity, ...]
    flips: tuple[LabelFlip, ...]
    decided: Decided | None = None
    accuracy: AccuracyChange | None = None
    max_abs: float
    max_rel: float
    ratio: float | None = None
    own: float | None = None
    causes: tuple[Cause, ...] = ()
    walk: Walk | None = None
    notes: tuple[str, ...] = ()
    passed: bool
    environment: Environment
