"""Small changes to an ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx

from tlexport.errors import ExportError

DOWN = re.compile(r"(_cast_to_fp16_node|^graph_input_cast\d+)$")
UP = re.compile(r"(_cast_to_fp32_node|^graph_output_cast\d+)$")
"""Names of the casts that ONNX Runtime's converter to fp16 adds."""


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node of the main graph a name of its own; names that are one already stay."""
    seen: set[str] = {node.name for node in model.graph.node if node.name}
    used: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in used:
            stem = node.name or f"{node.op_type}_{number}"
            name, count = stem, 1
            while name in seen:
                name, count = f"{stem}_{count}", count + 1
            node.name = name
            seen.add(name)
        used.add(node.name)
    return model


def tidy_casts(graph: onnx.GraphProto) -> None:
    """Take out what a conversion to fp16 leaves: casts made twice, there and back, or for none.

    Only casts that the converter added, by their names. From one fp32 node to the next a value
    must not go through fp16: what overflows there is why they are in fp32.
    """
    nodes, seen = [], set()
    for node in graph.node:
        if node.op_type == "Cast" and node.name.endswith("_node") and node.output[0] in seen:
            continue
        seen.update(node.output)
        nodes.append(node)
    down = {n.output[0]: n.input[0] for n in nodes if _is(n, DOWN)}
    back = {n.output[0]: down[n.input[0]] for n in nodes if _is(n, UP) and n.input[0] in down}
    whole = _whole(nodes, graph, back)
    nodes = [node for node in nodes if not (_is(node, UP) and node.output[0] in whole.values())]
    for node in nodes:
        named = [back.get(name, name) for name in node.input]
        node.input[:] = [whole.get(name, name) for name in named]
        node.output[:] = [whole.get(name, name) for name in node.output]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in _read(nodes, graph)]
    del graph.node[:]
    graph.node.extend(copies)


def _whole(
    nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto, back: dict[str, str]
) -> dict[str, str]:
    """Values in fp32 that are outputs of the graph after a way through fp16: to be so at once."""
    made = {name for node in nodes for name in node.output}
    made -= {output.name for output in graph.output}.union(*map(captured, nodes))
    return {back[o.name]: o.name for o in graph.output if back.get(o.name) in made}


def _read(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes without added casts that nothing reads, nor what only such casts read."""
    used = {output.name for output in graph.output}
    used |= {name for node in nodes if not _added(node) for name in (*node.input, *captured(node))}
    waiting = [node for node in nodes if _added(node)]
    while read := [node for node in waiting if node.output[0] in used]:
        used |= {name for node in read for name in node.input}
        waiting = [node for node in waiting if node.output[0] not in used]
    dead = {node.output[0] for node in waiting}
    return [node for node in nodes if not node.output or node.output[0] not in dead]


def _is(node: onnx.NodeProto, added: re.Pattern[str]) -> bool:
    return node.op_type == "Cast" and bool(added.search(node.name))


def _added(node: onnx.NodeProto) -> bool:
    return _is(node, DOWN) or _is(node, UP)


def nearest(graph: onnx.GraphProto, width: int) -> str:
    """The value [batch, width] that a node computes the fewest steps before the first output.

    Raises:
        ExportError: there is none.
    """
    makers = {name: node for node in graph.node for name in node.output}
    widths = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        for value in graph.value_info
    }
    row: list[str] = [graph.output[0].name]
    seen: set[str] = set()
    while row:
        above = [name for value in row if value in makers for name in makers[value].input]
        row = [name for name in dict.fromkeys(above) if name in makers and name not in seen]
        seen.update(row)
        for name in row:
            if widths.get(name) == [width]:
                return name
    raise ExportError(
        f"a value of {width} numbers that leads to {graph.output[0].name}",
        got="none in the graph",
        fix="compute features with the network itself",
    )


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the sub-graphs of a node read; those of their own included."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                found |= {*inner.input, *captured(inner)}
            found |= {output.name for output in graph.output}
    return found


def sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring nodes into an order where each comes after what it reads; stable otherwise."""
    graph = model.graph
    producer = {name: place for place, node in enumerate(graph.node) for name in node.output}
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            place = stack[-1]
            node = graph.node[place]
            needed = (producer.get(name) for name in (*node.input, *captured(node)))
            waiting = [p for p in needed if p is not None and p not in done and p != place]
            if place not in done and waiting:
                stack += waiting
                continue
            stack.pop()
            if place not in done:
                done.add(place)
                order.append(place)
    copies = [onnx.NodeProto.FromString(graph.node[p].SerializeToString()) for p in order]
    del graph.node[:]
    graph.node.extend(copies)
    return model
