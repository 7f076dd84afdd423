"""Small changes to an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx


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
    down = {n.output[0]: n.input[0] for n in nodes if n.name.endswith("_cast_to_fp16_node")}
    back = {
        n.output[0]: down[n.input[0]]
        for n in nodes
        if n.name.endswith("_cast_to_fp32_node") and n.input[0] in down
    }
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = back.get(name, name)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in _read(nodes, graph)]
    del graph.node[:]
    graph.node.extend(copies)


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


def _added(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.name.endswith(ADDED)


ADDED = ("_cast_to_fp16_node", "_cast_to_fp32_node")


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
