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
    val_fraction: float = 0.2  # reports of before there was the field do not say


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


class AccuracyCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a precision costs on held-out examples; `difference` is less fp32's, paired."""

    data: str
    examples: int
    fp32: Interval
    accuracy: Interval
    difference: Interval


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model of less than fp32.

    `form` is the way there (mixed, weights, static, dynamic ...), `left` maps the nodes that stayed
    in fp32, of `nodes` that could have been lowered, to the reason. `error` is the distance of the
    answers from fp32's on golden samples, as a share of their size; `speedup` over the fp32 file
    on this machine at batch 1, in turns. `calibrated_on` says which samples set the ranges.
    """

    form: str
    calibration: str
    calibrated_on: str
    nodes: int
    left: dict[str, str]
    error: float
    accuracy: AccuracyCost | None
    speedup: Interval
    notes: tuple[str, ...]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A precision that `auto` tried; `fault` says why it is out, empty where it holds."""

    artifact: str
    accuracy: AccuracyCost | None
    speedup: Interval | None
    fault: str


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and who can read it; opset and IR version where the target has them.

    `lowered` tells what less than fp32 costs and brings; `candidates` are those of `auto`.
    """

    artifact: str
    file: str
    sha256: str
    size_bytes: int
    opset: int | None
    ir_version: int | None
    triton_oldest: str
    triton: str | None
    reused: bool
    lowered: PrecisionReport | None = None
    candidates: tuple[Candidate, ...] = ()


class ShapeParity(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one output at one batch size, and the worst difference in it.

    `check` is one of: golden (the reference against the stored outputs), answers (the candidate
    against the reference), distinct, alone, permuted, repeated (the candidate against itself), or
    a probe of the task, such as "length 1" (against the reference, and a golden row's own answer).
    `scale` is the largest |value| the reference gives, `max_rel` is max_abs / scale, the number
    held against the tolerance, and `worst_index` is (golden sample, element ...) of the largest
    difference. max_abs and max_rel are None where there was nothing to subtract.
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


class LabelFlip(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that the candidate labels otherwise; `margin` is the reference's own."""

    sample: int
    output: str
    reference: str
    candidate: str
    margin: float
    forgiven: bool


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate answers as the reference does, bound to the file's digest."""

    reference: str
    candidate: str
    artifact: str
    artifact_sha256: str
    weights_sha256: str
    tolerance: float
    samples: int
    checks: tuple[ShapeParity, ...]
    flips: tuple[LabelFlip, ...]
    max_abs: float
    max_rel: float
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
