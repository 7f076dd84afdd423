"""int8: uint8 activations by int8 weights, per channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, quantize_dynamic

from tlexport.environment import saturates
from tlexport.errors import ExportError, OptionError
from tlexport.spec import Tensors
from tlexport.targets._calibration import METHODS, calibrated, prepared
from tlexport.targets._foreign import quiet
from tlexport.targets._graph import captured, sort
from tlexport.targets._lowering import Lowered, Wish, error_of
from tlexport.targets._session import Session, Values, save

DENSE = ("MatMul", "Gemm")
WEIGHTED = ("Conv", "ConvTranspose", *DENSE)
"""Nodes that multiply by weights: all that int8 makes faster."""

JOINING = ("Add", "Concat", "GlobalAveragePool", "AveragePool")
FOLLOWING = ("Relu", "Clip", "MaxPool")
"""What stands between convolutions, and would else go through fp32 and back."""

FAST = {"static": (*WEIGHTED, *JOINING, *FOLLOWING), "static-dense": DENSE}
FAST |= {"static-weights": WEIGHTED, "dynamic": DENSE}
"""Forms, and the kinds of nodes that each quantises."""

GOLDEN = 8
"""Samples by which forms, calibrations and nodes are compared."""

WHY = {
    "dynamic": "scales are taken from each batch as a whole: a row's answer depends on what it is "
    "batched with, and on padding",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What of a graph can be int8: names of nodes with weights, and those that stay in fp32."""

    weighted: tuple[str, ...]
    front: tuple[str, ...]
    convolutional: bool


class Int8:
    """An fp32 model on its way to int8, static or dynamic."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._golden = wish.golden[:GOLDEN]
        fp32 = onnx.load(wish.source, load_external_data=False)
        self._ir_version = fp32.ir_version
        _hold_fp32(fp32)
        self._model = prepared(wish)
        self._file = save(self._model, wish.work / "fp32.onnx")
        self._sizes = _sizes(self._model, wish)
        self._layout = _layout(self._model, self._sizes)
        self._wanted = self._answers(Session(wish.source))
        self._ranges: dict[str, Any] = {}
        self._chosen: dict[str, tuple[str, Any]] = {}
        self.forms = self._forms()

    def make(self, form: str, left: Collection[str] = ()) -> Lowered:
        """Quantise all nodes of the form's kinds but those in `left`."""
        names = self._candidates(form)
        model = self._built(form, [name for name in names if name not in left])
        facts = {"form": form, "error": self._error(model)}
        facts |= {"calibration": self._calibration(form)[0]} if form != "dynamic" else {}
        return Lowered(
            model=model,
            nodes=len(names),
            left={name: "costs accuracy" for name in names if name in left},
            facts=facts,
            notes=(WHY[form],) if form in WHY else (),
        )

    def dearest(self, form: str) -> Sequence[str]:
        """Nodes by the error of the answers when they alone are int8."""
        names = self._candidates(form)
        cost = {}
        for number, name in enumerate(names):
            cost[name] = self._error(self._built(form, [name]))
            self._wish.progress("what each node costs", number + 1, len(names))
        return sorted(names, key=lambda name: -cost[name])

    def _forms(self) -> tuple[str, ...]:
        dense = self._candidates("dynamic")
        if self._layout.convolutional:
            forms = ["static"]
        else:
            forms = ["static-dense"] if dense else []
            if len(self._layout.weighted) > len(dense):
                forms.append("static-weights")
        forms += ["dynamic"] if dense and not self._layout.convolutional else []
        wanted = self._wish.quantization
        if wanted == "dynamic":
            if not dense:
                raise OptionError(
                    "matrix products with constant weights for --quantization dynamic",
                    got="none: the weights are those of convolutions",
                    fix="pass --quantization static",
                )
            forms = ["dynamic"]
        return tuple(f for f in forms if wanted in ("auto", f.partition("-")[0]))

    def _candidates(self, form: str) -> list[str]:
        """Nodes that a form quantises, and that can be left in fp32."""
        kinds = set(FAST[form]) - set(FOLLOWING)
        layout = self._layout
        return [
            node.name
            for node in self._model.graph.node
            if node.op_type in kinds
            and node.name not in layout.front
            and (node.op_type not in WEIGHTED or node.name in layout.weighted)
            and (node.op_type != "Add" or self._joins(node))
        ]

    def _joins(self, node: onnx.NodeProto) -> bool:
        """Whether a sum joins two branches: the shift of a norm ranges too widely for int8."""
        sizes = {self._sizes.get(name) for name in node.input}
        return len(sizes) == 1 and None not in sizes

    def _built(self, form: str, names: Sequence[str]) -> onnx.ModelProto:
        if not names:
            model = onnx.ModelProto()
            model.CopyFrom(self._model)
        elif form == "dynamic":
            model = self._dynamic(names)
        else:
            following = self._following(names) if form == "static" else []
            model = self._static(form, [*names, *following])
        used = {node.domain or "" for node in model.graph.node}
        imports = [e for e in model.opset_import if e.domain in used | {"", "ai.onnx"}]
        del model.opset_import[:], model.graph.value_info[:], model.metadata_props[:]
        model.opset_import.extend(imports)
        model.ir_version = self._ir_version
        return sort(model)

    def _following(self, names: Sequence[str]) -> list[str]:
        """What follows the nodes `names`, as far as int8 goes.

        The quantiser takes a Clip or Relu out, since 8 bits cut off at its limits; after a node
        that stays in fp32 nothing would.
        """
        inside = set(names)
        made = {name: node.name for node in self._model.graph.node for name in node.output}
        found = []
        for node in self._model.graph.node:
            if node.op_type in FOLLOWING and made.get(node.input[0]) in inside:
                inside.add(node.name)
                found.append(node.name)
        return found

    def _static(self, form: str, names: Sequence[str]) -> onnx.ModelProto:
        _, ranges = self._calibration(form)
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        with quiet():
            quantizer = QDQQuantizer(
                copy,
                True,  # per channel
                saturates(),
                QuantType.QInt8,
                QuantType.QUInt8,
                ranges,
                list(names),
                [],
                list(FAST[form]),
                {
                    "MatMulConstBOnly": True,
                    # Their sums come out as fp32 at no cost: a kernel of its own does so.
                    "OpTypesToExcludeOutputQuantization": list(DENSE),
                },
            )
            quantizer.quantize_model()
        model: onnx.ModelProto = quantizer.model.model
        _keep(model, set(names))
        return model

    def _dynamic(self, names: Sequence[str]) -> onnx.ModelProto:
        large = self._file.with_suffix(".data").exists()
        place = self._wish.work / "dynamic.onnx"
        with quiet():
            quantize_dynamic(
                self._file,
                place,
                op_types_to_quantize=list(DENSE),
                per_channel=True,
                reduce_range=saturates(),
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(names),
                use_external_data_format=large,
            )
        return onnx.load(place)

    def _calibration(self, form: str) -> tuple[str, Any]:
        """The method and what it found: the one asked for, or the one whose answers err least."""
        if form not in self._chosen:
            asked = self._wish.calibration
            methods = tuple(METHODS) if asked == "auto" else (asked,)
            errors = {}
            for method in methods:
                try:
                    self._chosen[form] = (method, self._measured(method))
                    if len(methods) > 1:
                        errors[method] = self._error(self._built(form, self._candidates(form)))
                except ExportError:  # values of so narrow a range that they have no histogram
                    if len(methods) == 1 or method == "minmax":
                        raise
            best = min(errors, key=errors.__getitem__) if errors else asked
            self._chosen[form] = (best, self._measured(best))
        return self._chosen[form]

    def _measured(self, method: str) -> Any:
        """The ranges of all that any static form quantises, measured once: it takes longest."""
        if method not in self._ranges:
            kinds = {kind for form in self.forms if form != "dynamic" for kind in FAST[form]}
            self._ranges[method] = calibrated(
                self._file, kinds, method, self._wish, sum(self._sizes.values())
            )
        return self._ranges[method]

    def _error(self, model: onnx.ModelProto) -> float:
        file = save(model, self._wish.work / "trial.onnx")
        return error_of(self._answers(Session(file)), self._wanted)

    def _answers(self, session: Session) -> list[Tensors]:
        return [session(sample) for sample in self._golden]


def _keep(model: onnx.ModelProto, quantised: Collection[str]) -> None:
    """Have ONNX Runtime leave all nodes but those in fp32.

    Its WeightBiasQuantization (on by default since 1.20) makes int8, one scale for all channels, of
    the weights of whatever stands between a DequantizeLinear and a QuantizeLinear. A Sum of one
    summand before the node hands its input on and is no DequantizeLinear.
    """
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    nodes = []
    for node in model.graph.node:
        weighted = node.op_type in WEIGHTED and node.name not in quantised
        if weighted and node.input[0] in dequantised:
            handed = f"{node.input[0]}_to_{node.name}"
            nodes.append(
                onnx.helper.make_node("Sum", [node.input[0]], [handed], f"keep_{node.name}")
            )
            node.input[0] = handed
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _hold_fp32(model: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in model.graph.node}
    strange = sorted(k for k in kinds if "Quantize" in k or "Integer" in k or "QLinear" in k)
    if strange:
        raise ExportError(
            "an fp32 model to be made int8",
            got=f"one that is quantised already: {', '.join(strange)}",
            fix="package it as it is, or import the model from before it was quantised",
        )


def _layout(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Layout:
    """Which nodes have weights, and which come before the network itself begins.

    What comes before all weights is preprocessing, and so is what a logarithm is taken of: a
    spectrogram, whose small values an 8-bit scale would swallow.

    Raises:
        ExportError: no node has weights.
    """
    graph = model.graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer if t.data_type == 1}
    weighted = [
        node
        for node in graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights
    ]
    producer = {name: node for node in graph.node for name in node.output}
    above = {node.name: _ancestors(node, producer) for node in graph.node}
    cost = _costs(weighted, weights, sizes)
    spectrum: set[str] = set()
    for node in graph.node:
        if node.op_type == "Log" and 2 * sum(
            cost.get(name, 0.0) for name in above[node.name]
        ) < sum(cost.values()):
            spectrum |= above[node.name]
    kept = [node for node in weighted if node.name not in spectrum]
    if not kept:
        raise ExportError(
            f"nodes with constant weights that int8 can hold: {', '.join(WEIGHTED)}",
            got=f"none among {', '.join(sorted({n.op_type for n in graph.node})[:12])}",
            fix="export as fp32, fp16 or bf16",
        )
    names = {node.name for node in kept}
    front = [n.name for n in graph.node if n.name not in names and not above[n.name] & names]
    convolving = sum(cost[n.name] for n in kept if n.op_type not in DENSE)
    return Layout(
        weighted=tuple(node.name for node in kept),
        front=(*front, *spectrum),
        convolutional=2 * convolving >= sum(cost[n.name] for n in kept),
    )


def _ancestors(node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Names of all nodes that a node's answer depends on."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        for name in (*here.input, *captured(here)):
            before = producer.get(name)
            if before is not None and before.name not in found:
                found.add(before.name)
                waiting.append(before)
    return found


def _sizes(model: onnx.ModelProto, wish: Wish) -> dict[str, int]:
    """Elements of each value for one sample, by its name."""
    sizes: dict[str, int] = {}
    for some in Values(model, wish.work / "sizes").chunks(wish.golden[0]):
        sizes |= {name: int(array.size) for name, array in some.items()}
    return sizes


def _costs(
    weighted: Sequence[onnx.NodeProto],
    weights: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
) -> dict[str, float]:
    """Multiplications of each node for one sample, by its name."""
    costs = {}
    for node in weighted:
        shape = weights[node.input[1]]
        if node.op_type == "Conv":
            each = math.prod(shape[1:])
        elif node.op_type == "ConvTranspose":
            each = math.prod(shape[1:]) * shape[0] // max(1, shape[1])
        else:
            each = math.prod(shape) // max(1, _width(node, shape))
        costs[node.name] = float(sizes.get(node.output[0], 0)) * each
    return costs


def _width(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """What a matrix product answers per row."""
    across = any(a.name == "transB" and a.i for a in node.attribute)
    return int(np.prod(shape[:1] if across else shape[-1:]))
