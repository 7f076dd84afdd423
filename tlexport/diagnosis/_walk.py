"""An ONNX file's graph against the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tlexport.bundle import Artifact, Bundle
from tlexport.diagnosis._nodes import module_of, named
from tlexport.diagnosis._values import of_file, of_program, overflows
from tlexport.diagnosis._weights import LEAST
from tlexport.errors import ExportError
from tlexport.options import FACTOR
from tlexport.reports import GraphStep, Walk
from tlexport.spec import Tensors, cast
from tlexport.targets.onnx import trace

KEPT = 400
"""Steps that a report keeps: those beyond the floor first."""
WIDEST = 100.0
"""Floors beyond which a value is at fault, however far off the answer is."""
LISTED = 6
SHAPES = {"Shape", "Constant", "Concat", "Gather", "Unsqueeze", "Squeeze", "Cast", "Slice", "Range"}
"""Operators that work on sizes: no suspects."""


@dataclass
class _Reference:
    """Values of the reference, their floors, and where each came from."""

    against: str
    truth: Mapping[str, np.ndarray]
    rounded: Mapping[str, np.ndarray]
    modules: Mapping[str, str] = field(default_factory=dict)
    by_size: dict[tuple[int, ...], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.truth.items():
            if array.dtype.kind == "f" and array.size:
                self.by_size.setdefault(array.shape, []).append(name)


def walk(
    bundle: Bundle, artifact: Artifact, question: Tensors, limits: tuple[float, float]
) -> Walk:
    """Hold every value of the file against the same value of the original in float64.

    Values are matched by name, as the exporter keeps the names of the traced graph, else by what
    they hold. Where there is no original, and for reduced precisions where the float32 file is
    there, the file it was made from is the reference.

    Args:
        bundle: with the network, or the ONNX file it was made of.
        artifact: whose file is taken apart.
        question: one sample, {input: [1, ...]}.
        limits: how many floors the worst answer is off, and how many are healthy.

    Raises:
        ExportError: the file does not run, or the network cannot be traced.
    """
    file = bundle.artifact_file(artifact)
    model = _read(file)
    found = of_file(file, model, cast(question, bundle.spec_of(artifact).inputs))
    reference = _reference(bundle, artifact, question)
    ratio, factor = limits
    limit = min(WIDEST, max(factor, ratio / 4)) if np.isfinite(ratio) else WIDEST
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    steps, overflow = [], []
    first, compared = None, 0
    for node in model.graph.node:
        for name in node.output:
            array = found.get(name)
            if array is None or array.dtype.kind != "f" or not array.size:
                continue
            seen = _Seen(array, _range(node, question, found, constants))
            step = _step(node, name, seen, reference)
            if overflows(node, found):
                overflow.append(step)
            if step.error is None and step.finite:  # it is no value of the reference
                continue
            compared += 1
            steps.append(step)
            beyond = step.ratio is None or step.ratio > limit
            if first is None and beyond:
                first = step
    kept = steps if len(steps) <= KEPT else _kept(steps, first)
    suspects, before = _suspects(model, first, {step.value for step in steps})
    return Walk(
        suspects=suspects,
        before_weights=before,
        against=reference.against,
        values=sum(array.dtype.kind == "f" for array in found.values()),
        compared=compared,
        first=first,
        steps=tuple(kept),
        overflow=tuple(overflow[:KEPT]),
    )


def _read(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load(file)
    except Exception as error:  # protobuf's exceptions share no base but this
        raise ExportError(
            "an ONNX file that can be read", got=str(error), fix="export it again"
        ) from error


def _suspects(
    model: onnx.ModelProto, first: GraphStep | None, compared: set[str]
) -> tuple[tuple[str, ...], bool]:
    """Operators above `first` up to values that were compared; whether weights come before."""
    if first is None:
        return (), False
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = {t.name for t in model.graph.initializer if math.prod(t.dims) >= LEAST}
    found: list[str] = []
    learned, todo, seen = False, [(makers[first.value], True)], set()
    while todo:
        node, near = todo.pop()
        top = node is makers[first.value]
        learned |= not top and any(name in weights for name in node.input)
        for name in node.input:
            maker = makers.get(name)
            if maker is None or name in seen:
                continue
            seen.add(name)
            unknown = near and name not in compared
            if unknown and maker.op_type not in SHAPES:
                found.append(named(maker))
            todo.append((maker, unknown))
    return tuple(reversed(found[:LISTED])), not learned


def _kept(steps: list[GraphStep], first: GraphStep | None) -> list[GraphStep]:
    start = max(0, steps.index(first) - KEPT // 2) if first is not None else 0
    return steps[start : start + KEPT]


def _reference(bundle: Bundle, artifact: Artifact, question: Tensors) -> _Reference:
    if not bundle.manifest.original:
        return _of_file(bundle, question)
    program = trace(bundle, None).exported_program
    assert program is not None
    tensors = [torch.from_numpy(question[spec.name]) for spec in bundle.spec.inputs]
    names = [spec.name for spec in bundle.spec.outputs]
    truth, modules = of_program(program, tensors, names, "float64")
    rounded, _ = of_program(program, tensors, names, artifact.precision)
    return _Reference("the original in float64", truth, rounded, modules)


def _of_file(bundle: Bundle, question: Tensors) -> _Reference:
    model = onnx.load(bundle.weights)
    found = of_file(bundle.weights, model, question)
    return _Reference("the imported file", found, found)


@dataclass(frozen=True)
class _Seen:
    """A value of the file, and the range of its node's inputs."""

    array: np.ndarray
    inputs: tuple[float | None, float | None]


def _step(node: onnx.NodeProto, name: str, seen: _Seen, reference: _Reference) -> GraphStep:
    like, error, own = _best(name, seen.array, reference)
    return GraphStep(
        node=node.name or name,
        operator=node.op_type,
        value=name,
        module=reference.modules.get(like, "") or module_of(node),
        error=error if np.isfinite(error) else None,
        own=own,
        ratio=error / own if np.isfinite(error) else None,
        low=seen.inputs[0],
        high=seen.inputs[1],
        finite=bool(np.isfinite(seen.array).all()),
    )


def _best(name: str, array: np.ndarray, reference: _Reference) -> tuple[str, float, float]:
    """The reference's value that it is: of its name, unless another of its shape is nearer."""
    nan = float("nan")
    best = (name, nan, 1.0)
    named = reference.truth.get(name)
    if named is not None and named.shape == array.shape:
        best = (name, *_apart(name, array, reference))
        if best[1] / best[2] <= WIDEST:
            return best
    for other in reference.by_size.get(array.shape, ()):
        if other != name:
            error, own = _apart(other, array, reference)
            if error / own <= FACTOR and (np.isnan(best[1]) or error < best[1]):
                best = (other, error, own)
    return best


def _apart(name: str, array: np.ndarray, reference: _Reference) -> tuple[float, float]:
    """How far off it is, and how far rounding takes the original, as shares of the norm."""
    truth = reference.truth[name].astype(np.float64)
    size = float(np.linalg.norm(truth)) or 1.0
    unit = float(np.finfo(np.float32).eps)
    rounded = reference.rounded.get(name)
    with np.errstate(invalid="ignore"):
        off = 0.0 if rounded is None else float(np.linalg.norm(rounded - truth))
    own = max(unit, off / size) if np.isfinite(off) else unit
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gap = array.astype(np.float64) - truth
    if not np.isfinite(gap).all():
        return float("inf"), own
    return float(np.linalg.norm(gap)) / size, own


def _range(
    node: onnx.NodeProto,
    question: Tensors,
    found: Mapping[str, np.ndarray],
    constants: Mapping[str, onnx.TensorProto],
) -> tuple[float | None, float | None]:
    """Smallest and largest finite value among a node's first input that is computed or asked."""
    for name in node.input:
        array = found.get(name, question.get(name))
        if array is None and name in constants:
            array = numpy_helper.to_array(constants[name])
        if array is not None and array.dtype.kind in "fiu" and array.size:
            sound = array[np.isfinite(array)]
            return (float(sound.min()), float(sound.max())) if sound.size else (None, None)
    return None, None
