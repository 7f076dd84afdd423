"""What was found when a model was made."""

from __future__ import annotations

import msgspec

from tlexport.reports._interval import Interval


class TrialReport(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the search and what it reached on the validation part.

    `epochs` are passes over the training part: AdamW's until its best, L-BFGS's iterations.
    `unfreeze` is what trained besides the head, `augment` how strongly inputs were changed;
    `pruned` trials were stopped because others had been better by then. `val_weighed` is the
    accuracy with each example counting as its class does, where class weights were asked for and
    weights adapted: it chooses then.
    """

    optimiser: str = "AdamW"  # reports of before there were others do not say
    learning_rate: float
    weight_decay: float
    epochs: int
    val_loss: float
    val_accuracy: float
    unfreeze: str = "head"  # as all trials of before there was a choice
    augment: float = 0.0
    pruned: bool = False
    val_weighed: float | None = None


class EpochReport(msgspec.Struct, frozen=True, kw_only=True):
    """A pass over the training part while weights are adapted.

    `loss` is the mean of the steps', with augmentation and smoothing; `learning_rate` the highest
    of the last step. A loss is None where it was not finite: the run diverged. `val_weighed` is as
    in `TrialReport`.
    """

    epoch: int
    loss: float | None
    val_loss: float | None
    val_accuracy: float
    learning_rate: float
    seconds: float
    val_weighed: float | None = None


class AdaptReport(msgspec.Struct, frozen=True, kw_only=True):
    """What trained besides the head; `blocks` of the backbone's `of_blocks`, input side first.

    `best_epoch` is the one whose weights the bundle has, 0 where none was better than the frozen
    head, whose loss and accuracy stand beside. `batch` is of all `processes` together.
    """

    unfreeze: str
    blocks: tuple[str, ...]
    of_blocks: int
    trained_parameters: int
    parameters: int
    batch: int
    precision: str
    processes: int
    best_epoch: int
    epochs: tuple[EpochReport, ...]
    frozen_val_loss: float
    frozen_val_accuracy: float
    adapt_s: float = 0.0
    resumed: bool = False


class TrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What fine-tuning reached; `accuracy` is of the validation part, which chose the trial.

    `features_by` is the runtime that computed what was not in the cache, "" where all was.
    """

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
    features_by: str = ""  # reports of before there were others do not say
    head_s: float
    seed: int
    val_fraction: float = 0.2  # reports of before there was the field do not say
    adapted: AdaptReport | None = None


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


class BackbonesReport(msgspec.Struct, frozen=True, kw_only=True):
    """What can be loaded, as SOURCE/NAME; `missing` are sources that do not load, and why."""

    backbones: tuple[str, ...]
    missing: tuple[str, ...]
