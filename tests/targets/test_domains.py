"""Domains are lowered where nothing but the number changes, and nowhere else."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from tlexport.serving.releases import release
from tlexport.targets._domains import lower, opsets_of


def model(node, opsets, functions=()):
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


SCALER = helper.make_node(
    "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0] * 3, scale=[1.0] * 3
)
TREE = helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml")
PLAIN = helper.make_node("Relu", ["x"], ["y"])


def test_a_number_is_lowered_where_the_operator_is_the_same():
    changed = model(SCALER, {"": 17, "ai.onnx.ml": 5})
    lower(changed, release("24.03"))
    assert opsets_of(changed) == {"ai.onnx": 17, "ai.onnx.ml": 4}
    onnx.checker.check_model(changed)


def test_an_operator_that_the_release_has_not_keeps_its_number():
    changed = model(TREE, {"": 17, "ai.onnx.ml": 5})
    lower(changed, release("24.03"))
    assert release("24.03").too_new(opsets_of(changed)) == {"ai.onnx.ml": (5, 4)}


@pytest.mark.parametrize("domain", ["ai.onnx.ml", "com.ms.internal.nhwc", "com.microsoft"])
def test_a_domain_without_a_node_is_no_longer_imported(domain):
    changed = model(PLAIN, {"": 17, domain: 99})
    lower(changed, release("24.10"))
    assert opsets_of(changed) == {"ai.onnx": 17}


def test_functions_are_looked_into():
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [SCALER], [helper.make_opsetid("ai.onnx.ml", 5)]
    )
    node = helper.make_node("F", ["x"], ["y"], domain="own")
    changed = model(node, {"": 17, "own": 1}, [function])
    assert opsets_of(changed)["ai.onnx.ml"] == 5
    lower(changed, release("22.09"))
    assert opsets_of(changed) == {"ai.onnx": 17, "own": 1, "ai.onnx.ml": 3}
