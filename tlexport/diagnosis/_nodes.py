"""Nodes of an ONNX graph, and the modules they came from."""

from __future__ import annotations

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter writes ['', 'layer1', 'layer1.0', 'relu_1']."""


def named(node: onnx.NodeProto) -> str:
    """Its operator and its name, or its first output's."""
    return f"{node.op_type} {node.name or node.output[0]}"


def module_of(node: onnx.NodeProto) -> str:
    """Path of the PyTorch module that a node came from; empty where it is not told."""
    text = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    names = [part.strip(" '\"") for part in text.strip("[]").split(",")]
    return names[-2] if len(names) > 1 else ""
