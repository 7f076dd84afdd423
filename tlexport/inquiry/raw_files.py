"""Raw files through a served pipeline, held to the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tlexport.errors import SpecError, TlexportError
from tlexport.inquiry.causes import PIPELINE, Case
from tlexport.inquiry.steps import ROUNDED, Told, raw_answers
from tlexport.inquiry.truth import one_by_one
from tlexport.measure.causes import other_inputs
from tlexport.reports import Cause, ShapeParity
from tlexport.runtimes import connect
from tlexport.serving import pipeline
from tlexport.spec import Tensors, cast

if TYPE_CHECKING:
    from tlexport.tasks import Decisions  # tasks import torch

BAD_ITEM = f"{PIPELINE}, a bad item"
JUNK = b"\xff\xfe\xfd"
"""No picture, no sound and no UTF-8."""
SAME = 1e-5
"""Share of the scale by which floating-point inputs of two builds of a decoder may differ."""
CLEAR = 8.0
"""A score far above others of 0."""
LISTED = 32
"""Labels asked for one by one."""
VARIANTS: dict[str, tuple[Any, ...]] = {
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box"),
    "mode": ("shortest", "squash", "border"),
    "padding_side": ("left", "right"),
}
"""Numbers of preprocessing that people get wrong."""
AGAIN = "package the bundle again: the steps are written anew from it"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A pipeline in service, the golden files, and what the original says of them."""

    case: Case
    task: ModuleType
    where: str
    model: str
    version: str
    raw: Sequence[Path]
    inputs: Tensors
    scores: Tensors
    decided: Decisions

    @property
    def items(self) -> list[bytes]:
        """The golden files' contents."""
        return [path.read_bytes() for path in self.raw]


def hold_pipeline(case: Case, task: ModuleType | None, facts: Mapping[str, Any]) -> list[Cause]:
    """Ask a server's pipeline the golden files, where it has one; causes of what differs.

    Each file alone and all in batches, against the same files through the task's own loading and
    the reference; then a bad item among good ones. What is found are checks of the inquiry.
    """
    name = str(facts.get("pipeline") or "")
    if not name:
        return []
    notes = case.inquiry.truth.notes
    if task is None:
        notes.append(f"{name} was not asked: stored answers tell nothing of raw files")
        return []
    cause = _out_of_service(case, facts)
    if cause is not None:
        case.inquiry.note(PIPELINE, pipeline.PROBABILITY, cause.told)
        return [cause]
    if facts["pipeline_version"] != facts["version"]:
        notes.append(f"{name} was not asked: it is of version {facts['pipeline_version']}")
        return []
    try:
        asked = _prepared(case, task, facts)
        if asked is None:
            notes.append(
                f"{name} was not asked: the bundle has not all golden samples as they came"
            )
            return []
        good = _hold_answers(asked)
        mixed = _hold_bad_item(asked)
        if good:
            notes.extend(f"{each.told}: no answer changes" for each in _of_preprocess(asked))
            return [] if mixed is None else [mixed]
        return list(_causes(asked))
    except TlexportError as error:
        told = f"no usable answer: expected {error.expected}, got {error.got}"
        case.inquiry.note(PIPELINE, pipeline.PROBABILITY, told)
        return [Cause(name="pipeline", told=told, fix=error.fix)]


def _out_of_service(case: Case, facts: Mapping[str, Any]) -> Cause | None:
    """A pipeline that is not ready, or of another version than the model in service."""
    name, version = facts["pipeline"], facts["pipeline_version"]
    if not version:
        told = f"{name} is in the repository and not in service: {facts['pipeline_reason']}"
        return Cause(name="pipeline", told=told, fix=f"{AGAIN}; `tlexport lint` tells more")
    if version != facts["version"] and not case.runtime.version:
        told = (
            f"{name} answers by version {version}, and the model in service is of version "
            f"{facts['version']}"
        )
        return Cause(name="pipeline-version", told=told, fix=AGAIN)
    return None


def _prepared(case: Case, task: ModuleType, facts: Mapping[str, Any]) -> _Asked | None:
    """The golden files as the original reads and answers them; None where one is missing."""
    home, golden = case.home, case.inquiry.golden
    raw = [home.raw(sample) for sample in golden.samples]
    if not all(path.is_file() for path in raw):
        return None
    loaded = task.load(raw, home.spec.preprocess, home.files())
    if loaded.broken:
        row, why = next(iter(loaded.broken.items()))
        raise SpecError(
            "golden files that can be read in this process",
            got=f"{raw[row].name}: {why}",
            fix="install the versions of the decoders that bundle.json names",
        )
    scores: Tensors = case.inquiry.truth.answers
    if not _same(loaded.inputs, golden.inputs):
        scores = one_by_one(case.inquiry.truth.reference, home.spec, loaded.inputs)
    return _Asked(
        case=case,
        task=task,
        where=case.options.candidate,
        model=str(facts["model"]),
        version=str(facts["version"]),
        raw=raw,
        inputs=loaded.inputs,
        scores=scores,
        decided=task.decide(home.spec, scores),
    )


def _ask(asked: _Asked, name: str, inputs: Tensors) -> Tensors:
    """What a model around the model answers."""
    options = msgspec.structs.replace(asked.case.runtime, model=name, version=asked.version)
    runtime = connect(asked.where, None, options)
    try:
        return runtime(cast(inputs, runtime.spec.inputs))
    finally:
        runtime.close()


def _told(asked: _Asked, items: Sequence[bytes], size: int) -> list[Told]:
    """The pipeline's answers, `size` items a request."""
    name = pipeline.pipeline_of(asked.model)
    options = msgspec.structs.replace(asked.case.runtime, model=name, version=asked.version)
    runtime = connect(asked.where, None, options)
    try:
        size = min(size, runtime.facts()["max_batch"] or size)
        size = size if all(t.batched for t in asked.case.home.spec.inputs) else 1
        found: list[Told] = []
        for at in range(0, len(items), size):
            found += raw_answers(runtime, items[at : at + size])
        return found
    finally:
        runtime.close()


def _hold_answers(asked: _Asked) -> bool:
    """Each golden file alone, and all in batches, against the original; whether all are right."""
    good = True
    for size in sorted({1, min(asked.case.options.max_batch, len(asked.raw))}):
        worst, reasons = 0.0, []
        for row, told in enumerate(_told(asked, asked.items, size)):
            off, reason = _judged(asked, row, told)
            worst = max(worst, off)
            reasons += [f"{asked.raw[row].name}: {reason}"] if reason else []
        good = good and not reasons
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        _note(asked, (PIPELINE, size), worst, reasons[0] + more if reasons else "")
    return good


def _judged(asked: _Asked, row: int, told: Told) -> tuple[float, str]:
    """How far a probability is off, and what is wrong, if anything.

    Scores that are each off by e change a probability by a factor of up to exp(2 e).
    """
    if told.error:
        return 0.0, f"refused: {told.error}"
    labels, truth = asked.case.home.spec.labels, asked.case.inquiry.truth
    room = truth.bars[asked.case.home.spec.outputs[0].name].room(row)
    by_label = dict(zip(labels, asked.decided.by_label()[row], strict=True))
    best = asked.decided.probabilities[row]
    worst, reason = 0.0, ""
    for place, (label, got) in enumerate(zip(told.labels, told.probabilities, strict=True)):
        for want in (float(by_label.get(label, math.nan)), float(best[place])):
            allowed = want * math.expm1(min(2 * room, 700.0)) + ROUNDED
            off = abs(got - want)
            worst = max(worst, off) if math.isfinite(off) else worst
            if not off <= allowed and not reason:
                first = labels[int(asked.decided.order[row, place])]
                reason = f"{label!r} at {got:.6g}, where the original says {first!r} at "
                reason += f"{best[place]:.6g}"
    return worst, reason


def _hold_bad_item(asked: _Asked) -> Cause | None:
    """A bad item among good ones is told of, and its batch mates are answered as ever."""
    name = pipeline.pipeline_of(asked.model)
    mates = [asked.items[0], JUNK, asked.items[0]]
    reason = ""
    try:
        found = _told(asked, mates, len(mates))
    except TlexportError as error:
        reason = f"{name} refuses the batch mates of a bad item, too: {error.got}"
    else:
        if [bool(each.error) for each in found] != [False, True, False]:
            reason = f"{name} does not tell a bad item from its batch mates"
        elif off := _judged(asked, 0, found[0])[1] or _judged(asked, 0, found[2])[1]:
            reason = f"{name} answers the batch mates of a bad item otherwise: {off}"
    _note(asked, (BAD_ITEM, len(mates)), None, reason)
    return Cause(name="bad-item", told=reason, fix=AGAIN) if reason else None


def _note(asked: _Asked, what: tuple[str, int], off: float | None, reason: str) -> None:
    check, batch = what
    asked.case.inquiry.checks.append(
        ShapeParity(
            check=check,
            batch=batch,
            output=pipeline.PROBABILITY,
            max_abs=off,
            max_rel=off,
            scale=1.0,
            worst_index=(),
            passed=not reason,
            reason=reason,
        )
    )


def _causes(asked: _Asked) -> Iterator[Cause]:
    """Which step is at fault, each asked by itself; else how they are put together."""
    found = [*_of_preprocess(asked), *_of_postprocess(asked)]
    yield from found
    if not found and not asked.case.failed:
        yield Cause(
            name="pipeline",
            told=f"each step of {pipeline.pipeline_of(asked.model)} answers as it should by "
            "itself: the ensemble asks other versions of them, or maps their tensors otherwise",
            fix=AGAIN,
        )


def _of_preprocess(asked: _Asked) -> Iterator[Cause]:
    """Files that the preprocessing step reads into other arrays than training did."""
    name = pipeline.preprocess_of(asked.model)
    numbers, files = asked.case.home.spec.preprocess, asked.case.home.files()
    for path in asked.raw:
        item = np.array([[path.read_bytes()]], dtype=np.object_)
        try:
            got = dict(_ask(asked, name, {pipeline.RAW: item}))
        except TlexportError as error:
            told = f"{name} does not read {path.name}: {error.got}"
            yield Cause(name="preprocessing", told=told, fix=AGAIN)
            return
        got.pop(pipeline.ERROR, None)
        want = asked.task.load([path], numbers, files).inputs
        if _same(want, got):
            continue
        why = _variant(asked, path, got) or _difference(want, got)
        yield Cause(
            name="preprocessing",
            told=f"{name} makes other arrays of {path.name} than training did: {why}",
            fix=f"{AGAIN}; if its file is the bundle's, install the decoders' versions that "
            "deploy/Dockerfile pins",
        )
        return


def _variant(asked: _Asked, path: Path, got: Tensors) -> str:
    """A number of preprocessing, or a habit, that gives these arrays; "" if none is known."""
    numbers, files = asked.case.home.spec.preprocess, asked.case.home.files()
    for key, others in VARIANTS.items():
        for other in others if key in numbers else ():
            changed = {**numbers, key: other}
            if other != numbers[key] and _same(asked.task.load([path], changed, files).inputs, got):
                return f"{key} is {other!r} there, and was {numbers[key]!r}"
    for _, told, changed in other_inputs(asked.task.load([path], numbers, files).inputs):
        if _same(changed, got):
            return told
    return ""


def _difference(want: Tensors, got: Tensors) -> str:
    """The first array that differs, and how."""
    for name, array in want.items():
        other = got.get(name)
        if other is None or other.shape != array.shape:
            shape = "none" if other is None else list(other.shape)
            return f"{name!r} is {shape} and was {list(array.shape)}"
        if not _same({name: array}, {name: other}):
            gap = np.abs(other.astype(np.float64) - array.astype(np.float64))
            share = f"{(gap > 0).mean():.0%} of its values, by up to {gap.max():.3g}"
            return f"{name!r} differs in {share}"
    return ""


def _of_postprocess(asked: _Asked) -> Iterator[Cause]:
    """Scores that the postprocessing step turns into other labels."""
    name, labels = pipeline.postprocess_of(asked.model), asked.case.home.spec.labels
    scores = asked.case.home.spec.outputs[0].name
    try:
        for row in range(len(asked.raw)):
            told = _labelled(asked, asked.scores[scores][row])
            off = told.error or _judged(asked, row, told)[1]
            if not off:
                continue
            clear = np.eye(len(labels), dtype=np.float32)[:LISTED] * CLEAR
            first = [_labelled(asked, each).labels[:1] for each in clear]
            swapped = [
                f"{label!r} is told as {other!r}"
                for label, (other,) in zip(labels, first, strict=False)
                if label != other
            ]
            yield Cause(
                name="postprocessing", told=f"{name}: {', '.join(swapped) or off}", fix=AGAIN
            )
            return
    except TlexportError as error:
        yield Cause(name="postprocessing", told=f"{name} refuses: {error.got}", fix=AGAIN)


def _labelled(asked: _Asked, scores: np.ndarray) -> Told:
    """What the postprocessing step makes of one item's scores, float [labels]."""
    inputs = {
        asked.case.home.spec.outputs[0].name: scores[None],
        pipeline.ERROR: np.array([[b""]], dtype=np.object_),
    }
    answer = _ask(asked, pipeline.postprocess_of(asked.model), inputs)
    return Told(
        tuple(label.decode() for label in answer[pipeline.LABEL][0]),
        tuple(float(p) for p in answer[pipeline.PROBABILITY][0]),
        answer[pipeline.ERROR][0, 0].decode(),
    )


def _same(want: Tensors, got: Tensors) -> bool:
    """Whether arrays are equal, floating-point ones up to rounding, whatever their precision."""
    if set(want) != set(got):
        return False
    for name, array in want.items():
        other = got[name]
        if array.shape != other.shape:
            return False
        if array.dtype.kind != "f":
            if not np.array_equal(array, other):
                return False
            continue
        half = other.dtype == np.float16
        scale = max(1.0, float(np.abs(array).max(initial=0)))
        gap = np.abs(other.astype(np.float64) - array.astype(np.float64)).max(initial=0)
        if not gap <= (1e-3 if half else SAME) * scale:
            return False
    return True
