"""IO binding: on the CPU all but the CUDA graph itself; on a card the whole."""

import numpy as np
import onnxruntime as ort
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.errors import MissingDependency, OptionError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect
from tlexport.runtimes._bound import BoundSession


@pytest.fixture
def session():
    return ort.InferenceSession(small_bundles.healthy_onnx(), providers=["CPUExecutionProvider"])


def test_it_answers_as_the_session_does_whatever_the_shapes(session):
    bound = BoundSession(session, "cpu", 0)
    for batch, seed in ((1, 1), (3, 2), (1, 3), (3, 4)):
        asked = {"images": small_bundles.images(batch, seed=seed)}
        (answer,) = bound.run(["logits"], asked)
        np.testing.assert_array_equal(answer, session.run(["logits"], asked)[0])
    assert [held.number for held in bound._held.values()] == [1, 2]  # memory for each shape
    assert bound.get_providers() == session.get_providers()


def test_answers_are_not_overwritten_by_the_next(session):
    bound = BoundSession(session, "cpu", 0)
    (first,) = bound.run(["logits"], {"images": small_bundles.images(2, seed=1)})
    kept = first.copy()
    bound.run(["logits"], {"images": small_bundles.images(2, seed=2)})
    np.testing.assert_array_equal(first, kept)


@pytest.fixture
def bundle(tmp_path):
    return Bundle(small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx()))


@pytest.mark.parametrize("where", ["tensorrt:0-graph", "cuda-graph", "cpu-graph", "cuda:0-graphs"])
def test_graphs_are_of_cuda_alone(bundle, where):
    with pytest.raises(OptionError, match="ort@cuda:N-graph"):
        connect(f"ort@{where}", bundle, RuntimeOptions(threads=1))


@pytest.mark.gpu
def test_graphs_on_a_card_answer_as_the_cpu_does(bundle):
    graphs = connect("ort@cuda:0-graph", bundle, RuntimeOptions(threads=1))
    plain = connect("ort@cpu", bundle, RuntimeOptions(threads=1))
    for _ in range(4):  # asked, captured, replayed
        for batch in (1, 4):
            asked = {"images": small_bundles.images(batch)}
            answers = [runtime(asked)["logits"] for runtime in (graphs, plain)]
            np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-3)


def test_without_a_card_it_is_refused_not_run_on_the_cpu(bundle):
    import torch

    if torch.cuda.is_available():
        assert connect("ort@cuda:0-graph", bundle, RuntimeOptions(threads=1))
        return
    with pytest.raises(MissingDependency):
        connect("ort@cuda:0-graph", bundle, RuntimeOptions(threads=1))
