"""What a stage found, as frozen data."""

from __future__ import annotations

from typing import Any

import msgspec

from tlexport.environment import Environment


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class TrialReport(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the head search and what it reached on the validation part.

    `epochs` are passes over the training part: AdamW's until its best, L-BFGS's iterations.
    """

    optimiser: str = "AdamW"  # reports of before there were others do not say
    learning_rate: float
    weight_decay: float
    epochs: int
    val_loss: float
    val_accuracy: float


class TrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What fine-tuning reached; `accuracy` is of the validation part, which chose the trial."""

    bundle: str
    task: str
    backbone: str
    weights: str
    labels: tuple[str, ...]
    train_examples: int
    val_examples: int
    accuracy: Interval
    best: TrialReport
    trials: tuple[TrialReport, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    features_reused: int
    features_s: float
    head_s: float
    seed: int


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken in: tensors as NAME DTYPE [AXES].

    `samples` says where the golden samples came from, `reference` which runtime `verify` holds
    every other against.
    """

    bundle: str
    importer: str
    source: str
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    samples: str
    golden: int
    reference: str
    notes: tuple[str, ...]


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and who can read it; opset and IR version where the target has them."""

    artifact: str
    file: str
    sha256: str
    size_bytes: int
    opset: int | None
    ir_version: int | None
    triton_oldest: str
    triton: str | None
    reused: bool


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


class PackageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model stands in the repository."""

    repository: str
    model: str
    version: int
    artifact_sha256: str
    max_batch: int
    instances: int
    threads: int
    cores: int
    triton_oldest: str
    files: tuple[str, ...]


class LintFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that a model breaks: an error is what a server refuses or answers wrongly for.

    `file` is below the repository; `line` and `field` are there where it is a config.pbtxt.
    `fixable` is whether --fix mends it.
    """

    rule: str
    severity: str
    model: str
    file: str
    line: int | None
    field: str
    expected: str
    got: str
    fix: str
    fixable: bool


class LintReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a server would say to a repository; `changed` are the lines that --fix changed."""

    repository: str
    triton: str | None
    models: tuple[str, ...]
    findings: tuple[LintFinding, ...]
    errors: int
    warnings: int
    changed: dict[str, tuple[str, ...]]


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model a server answers for; `golden_max_abs` is None where no golden sample is known."""

    name: str
    version: str
    golden_max_abs: float | None


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and what it serves."""

    server: str
    reason: str
    http: str
    grpc: str
    metrics: str
    pid: int
    ready_s: float
    log: str
    models: tuple[ServedModel, ...]


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


class BackbonesReport(msgspec.Struct, frozen=True, kw_only=True):
    """What can be loaded, as SOURCE/NAME; `missing` are sources that do not load, and why."""

    backbones: tuple[str, ...]
    missing: tuple[str, ...]


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """The main job, stage by stage."""

    train: TrainReport
    export: ExportReport
    verify: ParityReport
    package: PackageReport
    serve: ServeReport
    served: ParityReport
    bench: BenchReport
