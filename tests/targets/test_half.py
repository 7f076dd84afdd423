"""fp16: what overflows or vanishes stays in fp32, found by measuring."""

from __future__ import annotations

import lossy_networks as lossy
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from tlexport.targets._graph import named, sort, tidy_casts
from tlexport.targets._half import Half
from tlexport.targets._lowering import Lowered, Wish, error_of
from tlexport.targets._session import Session, Values, save

X = lossy.draw(6)


def wish(model: onnx.ModelProto, folder, x: np.ndarray) -> Wish:
    work = folder / "work"
    work.mkdir()
    rows = [{"x": x[row : row + 1]} for row in range(len(x))]
    return Wish(source=save(model, folder / "fp32.onnx"), samples=rows, golden=rows, work=work)


def made(model: onnx.ModelProto, folder, x: np.ndarray) -> tuple[Lowered, np.ndarray]:
    """What became of it, and its answers as a GPU would store what lies between."""
    lowered = Half(wish(model, folder, x)).make("mixed")
    onnx.checker.check_model(lowered.model, full_check=True)
    return lowered, stored(lowered.model, folder, x)


def stored(model: onnx.ModelProto, folder, x: np.ndarray) -> np.ndarray:
    return Values(model, folder / "asked", stored=True).ask({"x": x}, ["y"])["y"]


def naive(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of it in fp16."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return sort(convert_float_to_float16(copy, keep_io_types=True))


def test_a_norm_that_overflows_stays_in_fp32_and_answers(tmp_path):
    model = lossy.norm_that_overflows()
    assert not np.isfinite(stored(naive(model), tmp_path, X)).all() or (
        error_of([{"y": stored(naive(model), tmp_path, X)}], [lossy.answers(model, X)]) > 0.1
    ), "all of it in fp16 fails, so there is something to find"
    lowered, found = made(model, tmp_path, X)
    assert {"square", "mean", "add_eps", "root"} <= set(lowered.left)
    assert "answer" not in lowered.left
    assert "squares reaches" in lowered.left["square"]
    assert error_of([{"y": found}], [lossy.answers(model, X)]) < 0.005
    assert lowered.facts["error"] < 0.005


def test_nothing_goes_through_fp16_from_one_fp32_node_to_the_next(tmp_path):
    lowered, _ = made(lossy.norm_that_overflows(), tmp_path, X)
    casts = [n for n in lowered.model.graph.node if n.op_type == "Cast"]
    down = {n.output[0] for n in casts if n.attribute[0].i == TensorProto.FLOAT16}
    assert not [n for n in casts if n.input[0] in down and n.attribute[0].i == TensorProto.FLOAT]
    assert len({n.output[0] for n in lowered.model.graph.node}) == len(lowered.model.graph.node)


def test_inputs_and_outputs_stay_fp32_and_names_are_kept(tmp_path):
    model = lossy.norm_that_overflows()
    lowered, _ = made(model, tmp_path, X)
    for value in (*lowered.model.graph.input, *lowered.model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    weights = {t.name: t.data_type for t in lowered.model.graph.initializer}
    assert weights["first"] == weights["last"] == TensorProto.FLOAT16
    assert weights["eps"] == TensorProto.FLOAT
    assert {n.name for n in model.graph.node} <= {n.name for n in lowered.model.graph.node}


def test_an_answer_that_fp16_cannot_hold_comes_as_it_is(tmp_path):
    """Nor does an output go through fp16 where the node that makes it is in fp32."""
    model = lossy.layer_of_outliers()
    graph = onnx.ModelProto.FromString(model.SerializeToString()).graph
    (output,) = (value.name for value in graph.output)
    for node in graph.node:
        node.output[:] = ["small" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.float32(1e6), "million"))
    graph.node.append(helper.make_node("Mul", ["small", "million"], ["y"], name="large"))
    graph.node.append(helper.make_node("Neg", ["y"], ["other"], name="again"))
    graph.output[0].name = "y"
    graph.output.append(graph.output[0])
    graph.output[1].name = "other"
    model.graph.CopyFrom(graph)
    lowered, found = made(model, tmp_path, X)
    want = Session(save(model, tmp_path / "want.onnx"))({"x": X}, ["y"])["y"]
    assert np.abs(want).max() > 65504
    assert {"large", "again"} <= set(lowered.left)
    assert error_of([{"y": found}], [{"y": want}]) < 0.005


def test_an_eps_that_vanishes_is_kept_as_it_is(tmp_path):
    x = np.zeros((3, 4), "f4")
    x[:, 0] = (1, -2, 3)
    model = lossy.eps_that_vanishes()
    assert np.isfinite(lossy.answers(model, x)["y"]).all()
    lowered, found = made(model, tmp_path, x)
    assert "add_eps" in lowered.left
    assert "1e-09 at most" in lowered.left["add_eps"]
    constants = {t.name: numpy_helper.to_array(t) for t in lowered.model.graph.initializer}
    assert constants["eps"] == np.float32(1e-9)
    assert np.isfinite(found).all()
    assert np.allclose(found, lossy.answers(model, x)["y"], atol=1e-3)


def test_what_only_the_answers_tell_is_found_upstream(tmp_path):
    """The powers are stored without complaint; the logarithm shows that their digits are gone."""
    x = 10.0 ** np.random.default_rng(0).uniform(-4.2, -3.7, (6, 4)).astype("f4")
    x[:, 0] = 1
    model = lossy.logarithm_of_little()
    wanted = lossy.answers(model, x)
    assert error_of([{"y": stored(naive(model), tmp_path, x)}], [wanted]) > 0.02
    lowered, found = made(model, tmp_path, x)
    assert "square" in lowered.left
    assert error_of([{"y": found}], [wanted]) < 0.02


def test_a_constant_that_others_share_is_rounded_for_them_alone(tmp_path):
    model = lossy.norm_that_overflows()
    big = helper.make_node("Add", ["y0", "eps"], ["y"], name="also_eps")
    model.graph.node[-1].output[0] = "y0"
    model.graph.node.append(big)
    lowered = Half(wish(model, tmp_path, X))
    lowered._kept.pop("also_eps")
    half = lowered.make("mixed").model
    kept = next(n for n in half.graph.node if n.name == "add_eps")
    constants = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert constants[kept.input[1]] == np.float32(1e-12)


def test_masks_of_minus_infinity_pass_and_weights_too_large_do_not(tmp_path):
    arrays = {
        "big": np.full((8, 4), 1e5, "f4"),
        "small": np.full((4,), 1e-3, "f4"),
        "mask": np.array([0, 0, 0, -np.inf], "f4"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["h"], name="heavy"),
        helper.make_node("Mul", ["h", "small"], ["s"], name="scale"),
        helper.make_node("Add", ["s", "mask"], ["m"], name="masked"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
    ]
    model = lossy.model(nodes, arrays, {"x": 8}, {"y": 4})
    lowered, found = made(model, tmp_path, X)
    assert {"heavy", "scale"} <= set(lowered.left)
    assert not {"masked", "softmax"} & set(lowered.left), "an infinity is one in fp16, too"
    assert np.isfinite(found).all()


def test_nodes_without_names_get_their_own(tmp_path):
    model = lossy.norm_that_overflows()
    for node in model.graph.node:
        node.name = "" if node.op_type == "MatMul" else "same"
    lowered, found = made(model, tmp_path, X)
    names = [node.name for node in named(model).graph.node]
    assert len(set(names)) == len(names)
    assert len(lowered.left) == 4
    assert error_of([{"y": found}], [lossy.answers(model, X)]) < 0.005


def test_casts_of_the_model_itself_are_left_alone():
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], name="floor", to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    model = lossy.model(nodes, {}, {"x": 4}, {"y": 4})
    tidy_casts(model.graph)
    assert [node.name for node in model.graph.node] == ["floor", "back"]


def test_the_order_of_nodes_is_found_again():
    model = lossy.norm_that_overflows()
    before = [node.name for node in model.graph.node]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert [node.name for node in sort(model).graph.node] == before


def test_a_session_shows_an_overflow_that_the_cpu_alone_would_hide(tmp_path):
    arrays = {"up": np.float32(1000), "down": np.float32(0.001)}
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["h"], name="up_"),
        helper.make_node("Mul", ["h", "down"], ["y"], name="down_"),
    ]
    half = naive(lossy.model(nodes, arrays, {"x": 4}, {"y": 4}))
    x = np.full((1, 4), 100, "f4")
    hidden = Session(save(half, tmp_path / "half.onnx"))({"x": x})["y"]
    assert np.isfinite(hidden).all()
    assert np.isinf(stored(half, tmp_path, x)).all()


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, -np.inf], [1.0, -np.inf], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [1.0, np.inf], np.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1.0], [0.0, 0.0], np.inf),
        ([3.0, 4.4], [3.0, 4.0], 0.08),
    ],
)
def test_errors_are_a_share_of_the_size(got, want, error):
    found = error_of([{"y": np.array(got, "f4")}], [{"y": np.array(want, "f4")}])
    assert found == pytest.approx(error, rel=1e-5)
