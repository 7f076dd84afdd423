"""Operator domains of an ONNX file, and what a release reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import ModelProto, NodeProto

from tlexport.serving.releases import Release

ONNX = ("", "ai.onnx")


def opsets_of(model: ModelProto) -> dict[str, int]:
    """Domain -> the newest version that the file or a function in it imports; "" is ai.onnx."""
    found: dict[str, int] = {}
    for holder in (model, *model.functions):
        for entry in holder.opset_import:
            domain = entry.domain or "ai.onnx"
            found[domain] = max(entry.version, found.get(domain, 0))
    return found


def lower(model: ModelProto, wanted: Release) -> None:
    """Lower what the file imports of domains but ai.onnx to what the release reads, where it can.

    A domain of which no node is used is no longer imported. Of one that is, the version is
    lowered where each operator is defined the same way at both: nothing but the number changes.
    """
    used = list(_nodes(model.graph.node))
    used += [node for function in model.functions for node in _nodes(function.node)]
    for domain, (version, limit) in wanted.too_new(opsets_of(model)).items():
        if domain in ONNX:
            continue
        operators = {node.op_type for node in used if node.domain == domain}
        if not all(_same(name, domain, (version, limit)) for name in operators):
            continue
        for holder in (model, *model.functions):
            for entry in [e for e in holder.opset_import if e.domain == domain]:
                if operators:
                    entry.version = min(entry.version, limit)
                else:
                    holder.opset_import.remove(entry)


def _same(operator: str, domain: str, versions: tuple[int, int]) -> bool:
    """Whether an operator is defined by the same text at both versions."""
    if not all(onnx.defs.has(operator, version, domain) for version in versions):
        return False
    new, old = (onnx.defs.get_schema(operator, version, domain) for version in versions)
    return bool(new.since_version == old.since_version)


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
