"""An ONNX file's structure, as ONNX Runtime would see it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

TYPES: dict[int, str] = {
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT32: "TYPE_UINT32",
    TensorProto.UINT64: "TYPE_UINT64",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.STRING: "TYPE_STRING",
}
"""What the backend serves; BF16 and the types of less than a byte it does not."""

KEPT_ELEMENTS = 4096
"""Weights of more are left out when shapes are inferred: a shape is no longer than this."""


class Tensor(msgspec.Struct, frozen=True):
    """An input or output: `dtype` is None for what is no tensor the backend serves.

    `shape` has -1 for a free axis. Where `sure` is false ONNX Runtime may know more of it.
    """

    dtype: str | None
    shape: tuple[int, ...]
    sure: bool = True


class External(msgspec.Struct, frozen=True):
    """A weight that lies in another file; `told` is what the file says of where."""

    name: str
    told: dict[str, str]
    size_bytes: int


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What the load rules ask of a file.

    `offered` are inputs that have a value in the file and may be left out; `operators` are the
    (domain, name) of every node, `functions` those that the file itself defines.
    """

    inputs: dict[str, Tensor]
    offered: dict[str, Tensor]
    outputs: dict[str, Tensor]
    opsets: dict[str, int]
    ir_version: int
    externals: tuple[External, ...]
    operators: frozenset[tuple[str, str]]
    functions: frozenset[tuple[str, str]]


def read(path: Path) -> Graph:
    """Read a file's structure; external data is not opened.

    Raises:
        ValueError: it is not a whole ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base but this
        raise ValueError(" ".join(str(error).split())) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ValueError("no graph in it")
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    declared = {value.name: _declared(value) for value in model.graph.input}
    externals = tuple(_externals(model))
    nodes = list(_nodes(model.graph))
    for function in model.functions:
        nodes.extend(node for outer in function.node for node in _within(outer))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            opsets[entry.domain] = max(entry.version, opsets.get(entry.domain, 0))
    return Graph(
        inputs={name: tensor for name, tensor in declared.items() if name not in given},
        offered={name: tensor for name, tensor in declared.items() if name in given},
        outputs=_outputs(model),
        opsets=_named(opsets),
        ir_version=model.ir_version,
        externals=externals,
        operators=frozenset((_domain(node.domain), node.op_type) for node in nodes),
        functions=frozenset((_domain(each.domain), each.name) for each in model.functions),
    )


def _named(opsets: dict[str, int]) -> dict[str, int]:
    """The domains by one name each: "" is written "ai.onnx"."""
    named: dict[str, int] = {}
    for domain, version in opsets.items():
        named[_domain(domain)] = max(version, named.get(_domain(domain), 0))
    return named


def _domain(name: str) -> str:
    return name or "ai.onnx"


def _declared(value: ValueInfoProto) -> Tensor:
    if value.type.WhichOneof("value") != "tensor_type":
        return Tensor(None, (), value.type.WhichOneof("value") is not None)
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    free = tuple(max(size, -1) for size in shape)
    return Tensor(TYPES.get(kind.elem_type), free)


def _outputs(model: ModelProto) -> dict[str, Tensor]:
    """Outputs with what can be inferred of them: ONNX Runtime serves that, not the file's words."""
    before = {value.name: _declared(value) for value in model.graph.output}
    known = {v.name: v.type.tensor_type.HasField("shape") for v in model.graph.output}
    typed = {value.name: value.type.WhichOneof("value") for value in model.graph.output}
    _lighten(model.graph)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape") if typed[value.name] == "tensor_type" else None
    sure = all(_is_known(node, model) for node in _nodes(model.graph)) and not model.functions
    try:
        after = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.output}
    except Exception:  # a fault in the file: ONNX Runtime's own words are better
        return {name: Tensor(t.dtype, t.shape, False) for name, t in before.items()}
    found = {}
    for name, tensor in before.items():
        inferred = _declared(after[name])
        has_shape = after[name].type.tensor_type.HasField("shape")
        if typed[name] is None:
            found[name] = Tensor(inferred.dtype, inferred.shape, sure and has_shape)
        elif typed[name] != "tensor_type" or not has_shape:
            found[name] = Tensor(tensor.dtype, tensor.shape, typed[name] != "tensor_type")
        else:
            found[name] = _merged(tensor, inferred, known[name], sure)
    return found


def _merged(declared: Tensor, inferred: Tensor, known: bool, sure: bool) -> Tensor:
    """What the file says and what follows from its nodes, as one."""
    if not known:
        return Tensor(declared.dtype, inferred.shape, sure)
    if len(declared.shape) != len(inferred.shape):
        return Tensor(declared.dtype, declared.shape, False)
    pairs = list(zip(declared.shape, inferred.shape, strict=True))
    shape = tuple(max(pair) for pair in pairs)
    agree = all(a == b or -1 in (a, b) for a, b in pairs)
    return Tensor(declared.dtype, shape, sure and agree)


def _is_known(node: NodeProto, model: ModelProto) -> bool:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get(node.domain, opsets.get("ai.onnx" if not node.domain else "", 0))
    domain = "" if node.domain == "ai.onnx" else node.domain
    return bool(onnx.defs.has(node.op_type, version, domain)) if version else False


def _lighten(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > KEPT_ELEMENTS:
            for field, _ in tensor.ListFields():
                if field.name.endswith("_data"):
                    tensor.ClearField(field.name)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of inner graphs as well."""
    for node in graph.node:
        yield from _within(node)


def _within(node: NodeProto) -> Iterator[NodeProto]:
    yield node
    for attribute in node.attribute:
        for inner in _graphs(attribute):
            yield from _nodes(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g, *attribute.graphs] if attribute.HasField("g") else [*attribute.graphs]


def _externals(model: ModelProto) -> Iterator[External]:
    functions = [node for function in model.functions for node in function.node]
    held = list(model.graph.initializer)
    nodes = [*_nodes(model.graph), *(inner for node in functions for inner in _within(node))]
    for node in nodes:
        for attribute in node.attribute:
            held += [attribute.t] if attribute.HasField("t") else []
            for inner in _graphs(attribute):
                held += inner.initializer
    for tensor in held:
        if tensor.data_location == TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            yield External(tensor.name, told, size_of(tensor))


def size_of(tensor: TensorProto) -> int:
    """Bytes of a weight: types of less than a byte share one."""
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-int(math.prod(tensor.dims)) * int(bits) // 8)


_BITS = {
    value: 4 if name.endswith(("INT4", "4E2M1")) else 2
    for name, value in TensorProto.DataType.items()
    if name.endswith(("INT4", "4E2M1", "INT2"))
}
