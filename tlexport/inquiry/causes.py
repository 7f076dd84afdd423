"""Why a candidate answers otherwise, as far as can be told."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.diagnosis import Fault
from tlexport.errors import TlexportError
from tlexport.inquiry.questions import SERVED_LABELS, Inquiry
from tlexport.measure.causes import explanations, other_inputs
from tlexport.measure.compare import difference, scale_of
from tlexport.options import RuntimeOptions, VerifyOptions
from tlexport.reports import Cause, GraphStep, ShapeParity, Walk
from tlexport.runtimes import connect
from tlexport.spec import Tensors, rows

logger = logging.getLogger(__name__)

SAME = 1e-3
"""Share of the scale within which two answers are called the same when a cause is sought."""
FEW = 4
AGAIN = "export again"
PIPELINE = "pipeline"
"""Checks of raw files begin so: their causes are sought step by step, not in the file."""
EVALUATE = "call .eval() on the network before it is exported"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is to be explained; `served_sha256` is the file that a server says it has."""

    home: Bundle
    artifact: Artifact
    options: VerifyOptions
    runtime: RuntimeOptions
    inquiry: Inquiry
    served_sha256: str = ""

    @property
    def failed(self) -> list[ShapeParity]:
        """The checks of the model's own answers that did not pass."""
        return [
            check
            for check in self.inquiry.checks
            if not check.passed and not check.check.startswith(PIPELINE)
        ]


def faults(home: Bundle, artifact: Artifact) -> list[Fault]:
    """What the artifact's file itself shows; nothing where nobody can read files of its target."""
    if artifact.target not in plugins.names("diagnosis"):
        return []
    found: list[Fault] = plugins.load("diagnosis", artifact.target).faults(home, artifact)
    return found


def causes(case: Case, seen: Sequence[Fault]) -> tuple[tuple[Cause, ...], Walk | None]:
    """Causes, the most specific first, and the walk along the graph where one was of use."""
    found = [fault.cause for fault in seen]
    found += _of_answers(case)
    found += _of_checks(case)
    found += _of_inputs(case)
    found += _of_server(case)
    unreadable = {"corrupt-file", "external-data"} & {cause.name for cause in found}
    walked = None if unreadable else walk_of(case)
    if walked is not None:
        found += _of_walk(case, walked)
    names: dict[str, Cause] = {}
    for cause in found:
        names.setdefault(cause.name, cause)
    return tuple(names.values()), walked


def _of_answers(case: Case) -> Iterator[Cause]:
    """A change to the answers that explains them all."""
    inquiry, labels = case.inquiry, case.home.spec.labels
    pairs = []
    if inquiry.alone is not None:
        pairs.append((inquiry.truth.answers, inquiry.alone))
    if inquiry.in_batch is not None:
        picked, got = inquiry.in_batch
        pairs.append((rows(inquiry.truth.answers, picked), got))
    for want, got in pairs:
        for name, array in want.items():
            for explanation in explanations(array, got[name], labels):
                yield Cause(name=explanation.name, told=explanation.told, fix=AGAIN)


def _of_checks(case: Case) -> Iterator[Cause]:
    """What the pattern of failed checks says."""
    failed = {check.check for check in case.failed}
    told = {check.check: check.reason for check in case.failed}
    alone_is_right = not any(c.check == "answers" and c.batch == 1 for c in case.failed)
    if "golden" in failed:
        yield Cause(
            name="stale-golden",
            told="the bundle's golden outputs are not what its network answers",
            fix="train or import again",
        )
    if SERVED_LABELS in failed:
        yield Cause(
            name="postprocessing",
            told=told[SERVED_LABELS],
            fix="package this bundle: labels and configuration are written from it",
        )
    if "original" in failed:
        yield Cause(name="original", told=told["original"], fix="put the original into eval mode")
    if "repeated" in failed and "no usable answer" not in told["repeated"]:
        yield Cause(name="random", told=told["repeated"], fix=EVALUATE)
    if "distinct" in failed:
        yield Cause(name="constant-answer", told=told["distinct"], fix=AGAIN)
    refused = sorted({c.batch for c in case.failed if "no usable answer" in c.reason})
    if refused and alone_is_right:
        yield Cause(
            name="constant-axis",
            told=f"batches of {', '.join(map(str, refused))} are refused",
            fix="export with a dynamic batch axis",
        )
    if failed & {"alone", "permuted"} and "repeated" not in failed and not refused:
        yield Cause(
            name="depends-on-batch",
            told=f"a row's answer depends on its batch mates: {told.get('alone', '')}",
            fix=f"{EVALUATE}; let no statistic of the batch into the answer",
        )
    padding = sorted(check for check in failed if "padd" in check and check != "unpadded")
    if padding and "unpadded" not in failed:
        yield Cause(
            name="padding",
            told=f"padding changes answers ({', '.join(padding)}): "
            + (
                "positions, or the last token, are counted from the left"
                if all("left" in check for check in padding)
                else "the mask is not honoured, or pooling counts padding"
            ),
            fix="mask attention and pooling, and count positions over real tokens",
        )
    if failed and not failed & {"answers", "golden", "original", "alone", "repeated", *padding}:
        first = next(iter(told))
        yield Cause(
            name="range", told=f"only {', '.join(sorted(failed))}: {told[first]}", fix=AGAIN
        )


def _of_inputs(case: Case) -> Iterator[Cause]:
    """A change to the inputs after which the original answers as the candidate does."""
    inquiry, spec = case.inquiry, case.home.spec
    if inquiry.alone is None or case.options.reference != "eager@cpu":
        return
    batched = all(tensor.batched for tensor in spec.inputs)
    few = np.arange(min(FEW, inquiry.samples) if batched else 1)
    asked = rows(inquiry.golden.inputs, few)
    got = rows(inquiry.alone, few)
    if _alike(rows(inquiry.truth.answers, few), got):
        return
    for name, told, changed in other_inputs(asked):
        try:
            answer = inquiry.truth.reference(changed)
        except TlexportError as error:
            logger.debug("inputs %s are not answered: %s", name, error)
            continue
        if _alike(answer, got):
            yield Cause(
                name=name,
                told=f"the file answers as the original does where {told}",
                fix="prepare the inputs as the bundle's `preprocess` says, and once",
            )


def _of_server(case: Case) -> Iterator[Cause]:
    """Where a server answers otherwise: by preprocessing, by its model, or on the way."""
    inquiry = case.inquiry
    if not case.options.candidate.startswith("triton@") or inquiry.alone is None:
        return
    first = slice(0, 1)
    if _alike(rows(inquiry.truth.answers, first), rows(inquiry.alone, first)):
        return
    local = connect("ort@cpu", case.home, case.runtime)
    try:
        here = local(rows(inquiry.golden.inputs, first))
    finally:
        local.close()
    if not _alike(here, rows(inquiry.truth.answers, first)):
        yield Cause(name="model", told="the file answers so in this process, too", fix=AGAIN)
    elif case.served_sha256 == case.artifact.sha256:
        yield Cause(
            name="transport",
            told="the server says it has this very file, which answers right in this process: "
            "tensors change on the way, or its ONNX Runtime is at fault",
            fix="compare the server's ONNX Runtime with this one; ask by triton@http://HOST:PORT",
        )
    elif not case.served_sha256:
        yield Cause(
            name="served-model",
            told="the file answers right in this process; the server does not say which it has",
            fix="package this bundle, and let the server load that version",
        )
    else:
        yield Cause(
            name="served-model",
            told=f"the server has another file, {case.served_sha256[:12]}; the bundle's, "
            f"{case.artifact.sha256[:12]}, answers right in this process",
            fix="package this bundle and let the server load that version",
        )
    if _prepared_otherwise(case):
        yield Cause(
            name="preprocessing-changed",
            told="the golden files, as they came, give other inputs than when the bundle was made",
            fix="install the versions of the decoders in bundle.json, or train again",
        )


def _prepared_otherwise(case: Case) -> bool:
    """Whether the raw golden samples are read into other arrays than are stored."""
    task, home = plugins.load("tasks", case.home.spec.task), case.home
    raw = [home.raw(sample) for sample in case.inquiry.golden.samples]
    if not hasattr(task, "load") or not all(file.is_file() for file in raw):
        return False
    loaded = task.load(raw, home.spec.preprocess, home.files())
    return bool(loaded.broken) or any(
        array.shape != case.inquiry.golden.inputs[name].shape
        or not np.array_equal(array, case.inquiry.golden.inputs[name])
        for name, array in loaded.inputs.items()
    )


def walk_of(case: Case) -> Walk | None:
    """The walk with the sample that is off most; None where the file cannot be taken apart."""
    inquiry, name = case.inquiry, case.artifact.target
    if name not in plugins.names("diagnosis"):
        return None
    answers = [c for c in inquiry.checks if c.check == "answers" and c.worst_index]
    worst = max(answers, key=lambda check: check.ratio or 0.0, default=None)
    sample = worst.worst_index[0] if worst is not None else 0
    ratio = worst.ratio if worst is not None and worst.ratio is not None else np.inf
    question = rows(inquiry.golden.inputs, np.array([sample]))
    diagnosis = plugins.load("diagnosis", name)
    try:
        walk: Walk = diagnosis.walk(
            case.home, case.artifact, question, (ratio, case.options.factor)
        )
    except TlexportError as error:
        inquiry.truth.notes.append(f"the graph was not walked: {error.got}")
        return None
    return walk


def _of_walk(case: Case, walk: Walk) -> Iterator[Cause]:
    """What the first value beyond the floor says."""
    if walk.overflow:
        step = walk.overflow[0]
        yield Cause(
            name="overflow",
            told=f"{step.operator} {step.node} ({step.module}) gives infinity or NaN from inputs "
            f"of {_number(step.low)} to {_number(step.high)}",
            fix="keep that layer in float32 (`tlexport export --precision fp16` finds such)"
            if case.artifact.precision in ("fp16", "bf16")
            else AGAIN,
        )
    if walk.first is not None:
        told = _told(walk, walk.first)
        if walk.before_weights:
            yield Cause(
                name="preprocessing",
                told=f"at or before the first learned layer: {told}",
                fix="prepare inputs in the graph as the original does, and once",
            )
        yield Cause(
            name="node", told=told, fix="compare that operator with the module of the original"
        )
    elif case.inquiry.alone is not None and not walk.overflow and _unlike_the_original(case):
        yield Cause(
            name="optimiser",
            told="no value is beyond rounding while the graph is not optimised: the runtime's "
            "optimisations, or the runtime, are at fault",
            fix="try another version of onnxruntime, or `--candidate ort@cpu-plain`",
        )


def _unlike_the_original(case: Case) -> bool:
    """Whether more failed than may be the original's own: padding, or a stale golden answer."""
    return any(
        check.check != "golden" and not check.check.endswith(", alone") for check in case.failed
    )


def _told(walk: Walk, step: GraphStep) -> str:
    where = f"{step.operator} {step.node}" + (f" of {step.module}" if step.module else "")
    off = "it is not finite"
    if step.error is not None and step.ratio is not None:
        off = f"off by {step.error:.2g} of its norm, {step.ratio:.3g}x its rounding"
    told = f"the first value beyond rounding is {step.value!r}, by {where}: {off}"
    if walk.suspects:
        told += f"; it comes from operators the original has not: {', '.join(walk.suspects)}"
    return told


def _number(value: float | None) -> str:
    return "no finite value" if value is None else f"{value:.3g}"


def _alike(want: Tensors, got: Tensors) -> bool:
    return all(
        difference(np.asarray(array), np.asarray(got[name])).within(SAME, scale_of(array))
        for name, array in want.items()
    )
