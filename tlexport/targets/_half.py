"""fp16: what overflows is found by measuring, and stays."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from tlexport.errors import ExportError
from tlexport.spec import Tensors
from tlexport.targets._foreign import quiet
from tlexport.targets._graph import named, sort, tidy_casts
from tlexport.targets._lowering import Lowered, Wish, error_of
from tlexport.targets._session import Values

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""Inputs that were not measured may give values this many times larger."""

SMALLEST = float(np.finfo(np.float16).smallest_normal)
"""A tensor whose largest value is below has lost digits, or all of them, in fp16."""

NOISE = 0.02
"""Distance of an answer that rounding to 11 bits explains, as a share of its size."""

MOST_SAMPLES = 4
MOST_ROUNDS = 24

SUMS = {"ReduceMean": 1, "ReduceL2": 2, "ReduceSumSquare": 2, "GlobalAveragePool": 1}
SUMS |= {"InstanceNormalization": 2, "LpNormalization": 2, "AveragePool": 1}
"""Nodes that sum up inside what they then divide: the power of the values that are summed.

LayerNormalization is none: ONNX itself has it computed in fp32 (`stash_type`)."""


class Half:
    """An fp32 model on its way to fp16; the one form is "mixed"."""

    forms: tuple[str, ...] = ("mixed",)

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._samples = wish.golden[:MOST_SAMPLES]
        self._model = named(onnx.load(wish.source))
        self._values = Values(self._model, wish.work / "fp32")
        self._ranges = _ranges(self._model, self._values, self._samples)
        self._kept = _unfit(self._model, self._ranges)

    def make(self, form: str, left: Collection[str] = ()) -> Lowered:
        """Convert, ask, keep what went wrong in fp32, until nothing does.

        Raises:
            ExportError: values are still not finite when no more can be kept.
        """
        kept = self._kept | dict.fromkeys(left, "asked for")
        for turn in range(MOST_ROUNDS):
            half = _converted(self._model, kept, self._values.types)
            errors = self._errors(half)
            self._wish.progress("fp16", turn + 1, None)
            more = _culprits(self._model, errors, kept)
            if not more:
                break
            kept |= more
        error = max(errors[output.name] for output in self._model.graph.output)
        if any(math.isinf(each) for each in errors.values()):
            lost = next(name for name, each in errors.items() if math.isinf(each))
            raise ExportError(
                "finite values in fp16, with the nodes that overflow left in fp32",
                got=f"{lost} is not finite with {len(kept)} nodes left in fp32",
                fix="export as fp32 or bf16",
            )
        if self._wish.io == "fp16":
            self._hold_ends()
            half = _converted(self._model, kept, self._values.types, io="fp16")
        nodes = [n for n in self._model.graph.node if n.op_type not in DEFAULT_OP_BLOCK_LIST]
        return Lowered(
            model=half,
            nodes=len(nodes),
            left={name: kept[name] for name in sorted(kept)},
            facts={"error": error},
            notes=(
                "ONNX Runtime's CPU has few kernels for fp16 and computes in fp32 between casts: "
                "fp16 is made for GPUs",
            ),
        )

    def dearest(self, form: str) -> Sequence[str]:
        """None: what had to stay in fp32 was found by `make`."""
        return ()

    def _hold_ends(self) -> None:
        """Refuse float16 for inputs and outputs that it cannot hold.

        Raises:
            ExportError: naming the tensor and its largest value on golden samples.
        """
        for value in (*self._model.graph.input, *self._model.graph.output):
            largest, _ = self._ranges.get(value.name, (0.0, 0))
            is_float = value.type.tensor_type.elem_type == TensorProto.FLOAT
            if is_float and largest * HEADROOM > LARGEST:
                raise ExportError(
                    f"inputs and outputs of at most {LARGEST / HEADROOM:g}, to travel as float16",
                    got=f"{value.name!r} reaches {largest:.3g} on golden samples",
                    fix="leave --io-precision at fp32",
                )

    def _errors(self, half: onnx.ModelProto) -> dict[str, float]:
        """Of each value that both graphs have: how far off it is, infinite where not finite."""
        errors: dict[str, float] = {}
        halves = Values(half, self._wish.work / "half", stored=True)
        for sample in self._samples:
            for wanted in self._values.chunks(sample):
                # What a node in fp32 answers is called so where a node in fp16 reads it, too.
                names = {name: f"{name}_cast_to_fp16" for name in wanted}
                names = {k: v if v in halves.types else k for k, v in names.items()}
                names = {k: v for k, v in names.items() if v in halves.types}
                found = halves.ask(sample, list(names.values()))
                for name, there in names.items():
                    off = error_of([{name: found[there]}], [{name: wanted[name]}])
                    errors[name] = max(errors.get(name, 0.0), off)
        return errors


def _ranges(
    model: onnx.ModelProto, values: Values, samples: Sequence[Tensors]
) -> dict[str, tuple[float, int]]:
    """Largest finite magnitude and number of elements of all values, inputs and constants."""
    found: dict[str, tuple[float, int]] = {}

    def see(name: str, array: np.ndarray) -> None:
        sizes = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.empty(0)
        largest = float(sizes.max()) if sizes.size else 0.0
        before, count = found.get(name, (0.0, 0))
        found[name] = max(before, largest), max(count, array.size)

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            see(tensor.name, numpy_helper.to_array(tensor))
    for sample in samples:
        for some in (sample, *values.chunks(sample)):
            for name, array in some.items():
                see(name, array)
    return found


def _unfit(model: onnx.ModelProto, ranges: dict[str, tuple[float, int]]) -> dict[str, str]:
    """Nodes that fp16 cannot hold, and why: a value of theirs is too large, or nothing but tiny."""
    kept = {}
    weights = {t.name for t in model.graph.initializer if math.prod(t.dims) > 1}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            largest, _ = ranges.get(name, (0.0, 0))
            if largest * HEADROOM > LARGEST:
                kept[node.name] = f"{name} reaches {largest:.3g}"
            elif 0.0 < largest < SMALLEST and name not in weights:
                kept[node.name] = f"{name} is {largest:.3g} at most"
        if node.op_type in SUMS and node.name not in kept:
            largest, count = ranges.get(node.input[0], (0.0, 0))
            _, groups = ranges.get(node.output[0], (0.0, 1))
            # A normalisation answers as much as it takes: each row and channel is a sum.
            each = count / max(1, groups) if groups < count else count
            total = largest ** SUMS[node.op_type] * each
            if total * HEADROOM > LARGEST:
                kept[node.name] = f"its sum reaches {total:.3g}"
    return kept


def _culprits(
    model: onnx.ModelProto, errors: dict[str, float], kept: dict[str, str]
) -> dict[str, str]:
    """The first nodes where values go wrong, not kept yet, or what feeds those that are."""
    outputs = max(errors.get(output.name, 0.0) for output in model.graph.output)
    limit = NOISE if outputs > NOISE else math.inf
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        worst = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        if worst < limit and not math.isinf(worst):
            continue
        if any(_wrong(errors.get(name, 0.0), limit) for name in node.input):
            continue
        why = "not finite in fp16" if math.isinf(worst) else f"off by {worst:.2g} in fp16"
        if node.name not in kept:
            found[node.name] = why
        waiting = [node] if node.name in kept else []
        while waiting:  # what feeds it may be in fp32 already: then what feeds that
            for name in waiting.pop().input:
                feeder = producers.get(name)
                if feeder is None or name not in errors or feeder.name in found:
                    continue
                if feeder.name in kept:
                    waiting.append(feeder)
                else:
                    found[feeder.name] = f"feeds {node.name}, {why}"
    return found


def _wrong(error: float, limit: float) -> bool:
    return error >= limit or math.isinf(error)


def _converted(
    model: onnx.ModelProto, kept: Collection[str], types: dict[str, str], io: str = "fp32"
) -> onnx.ModelProto:
    """The model in fp16 but for the nodes `kept`, and for its inputs and outputs unless `io`."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    _own_constants(half.graph, kept)
    del half.graph.value_info[:]
    ends = {value.name for value in (*half.graph.input, *half.graph.output)}
    half.graph.value_info.extend(  # measured, as no shape inference knows every node
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name, kind in types.items()
        if kind == "float32" and name not in ends
    )
    with quiet():
        half = convert_float_to_float16(
            half,
            keep_io_types=io == "fp32",
            disable_shape_infer=True,
            node_block_list=sorted(kept),
        )
    tidy_casts(half.graph)
    del half.graph.value_info[:]
    return sort(half)


def _own_constants(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Give kept nodes constants of their own: shared ones would be rounded for all."""
    inside = [node for node in graph.node if node.name in kept]
    rounded = {name for node in graph.node if node.name not in kept for name in node.input}
    constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    own: dict[str, str] = {}
    for node in inside:
        for place, name in enumerate(node.input):
            if name in constants and name in rounded:
                if name not in own:
                    own[name] = f"{name}:fp32"
                    copy = graph.initializer.add()
                    copy.CopyFrom(constants[name])
                    copy.name = own[name]
                node.input[place] = own[name]
