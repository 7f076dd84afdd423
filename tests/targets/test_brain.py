"""bf16: weights rounded as PyTorch rounds them, everything else as it was."""

from __future__ import annotations

import lossy_networks as lossy
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tlexport.errors import ExportError
from tlexport.targets._brain import Brain
from tlexport.targets._lowering import Wish
from tlexport.targets._session import Session, save


@pytest.fixture
def brain(tmp_path):
    """A model of one input x on its way to bf16."""

    def of(model: onnx.ModelProto) -> Brain:
        (tmp_path / "work").mkdir()
        rows = [{"x": row[None]} for row in lossy.draw(4)]
        source = save(model, tmp_path / "fp32.onnx")
        return Brain(Wish(source=source, samples=rows, golden=rows, work=tmp_path / "work"))

    return of


def test_it_answers_as_the_network_with_rounded_weights(brain, tmp_path):
    model = lossy.layer_of_outliers(width=64)
    lowered = brain(model).make("weights")
    onnx.checker.check_model(lowered.model, full_check=True)
    assert lowered.nodes == 1
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            weight = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            rounded = weight.to(torch.bfloat16).float().numpy()
            tensor.CopyFrom(numpy_helper.from_array(rounded, "w2"))
    x = lossy.draw(5, seed=9)
    found = Session(save(lowered.model, tmp_path / "bf16.onnx"))({"x": x})["logits"]
    assert np.array_equal(found, lossy.answers(model, x)["logits"])


def test_small_constants_and_names_stay(brain):
    model = lossy.layer_of_outliers(width=64)
    after = brain(model).make("weights").model
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert kinds["b1"] == TensorProto.FLOAT
    assert kinds["w2:bf16"] == TensorProto.BFLOAT16
    assert [n.name for n in after.graph.node][1:] == [n.name for n in model.graph.node]
    assert after.graph.node[0].output == ["w2"]


def test_nothing_to_round_is_told(brain):
    with pytest.raises(ExportError, match="got: none"):
        brain(lossy.norm_that_overflows()).make("weights")
