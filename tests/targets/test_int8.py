"""int8: which form, which nodes, and what is told."""

from __future__ import annotations

import dataclasses
import logging

import lossy_networks as lossy
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import small_bundles
from onnx import TensorProto, helper, numpy_helper

from tlexport.environment import saturates
from tlexport.errors import ExportError, OptionError
from tlexport.targets import _calibration, _int8
from tlexport.targets._int8 import Int8
from tlexport.targets._lowering import Wish
from tlexport.targets._session import Session, save


@pytest.fixture
def wish(tmp_path):
    """A wish for a model, or for a file, of one input."""

    def of(model, x: np.ndarray, **more: str) -> Wish:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        if isinstance(model, onnx.ModelProto):
            model = save(model, tmp_path / "fp32.onnx")
        (name,) = (value.name for value in onnx.load(model).graph.input)
        rows = [{name: x[row : row + 1]} for row in range(len(x))]
        return Wish(source=model, samples=rows, golden=rows, work=work, **more)

    return of


@pytest.fixture
def conv(wish):
    """The small convolutional network."""

    def of(**more: str) -> Int8:
        return Int8(wish(small_bundles.healthy_onnx(), small_bundles.images(12), **more))

    return of


def dense(layers: int = 2) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {f"w{n}": rng.normal(0, 0.3, (32, 32)).astype("f4") for n in range(layers)}
    nodes, here = [], "x"
    for n in range(layers):
        nodes.append(helper.make_node("MatMul", [here, f"w{n}"], [f"h{n}"], name=f"product{n}"))
        nodes.append(helper.make_node("Tanh", [f"h{n}"], [f"a{n}"], name=f"tanh{n}"))
        here = f"a{n}"
    nodes[-1].output[0] = "y"
    return lossy.model(nodes, arrays, {"x": 32}, {"y": 32})


def convolutions_alone() -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), "f4"), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = helper.make_graph([node], "g", [image], [answer], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_convolutions_are_uint8_by_int8_per_channel_in_onnx_own_operators(conv):
    way = conv(calibration="minmax")
    assert way.forms == ("static",)
    lowered = way.make("static")
    model = lowered.model
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [e.domain for e in model.opset_import] == [""]
    weights = {t.name: t for t in model.graph.initializer}
    scaled = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    kinds = {n.input[0]: weights[n.input[2]].data_type for n in scaled if len(n.input) > 2}
    for name, kind in kinds.items():
        expected = {TensorProto.UINT8} if name not in weights else {3, 6}  # int8, int32 biases
        assert kind in expected, name
    convolved = [n for n in scaled if n.input[0].endswith("second.weight_quantized")]
    assert weights[convolved[0].input[1]].dims == [16]
    assert lowered.left == {}
    assert lowered.facts["calibration"] == "minmax"
    assert lowered.facts["error"] < (0.1 if saturates() else 0.05)  # weights of 7 or 8 bits
    assert not lowered.notes


def test_preprocessing_stays_fp32_and_names_are_kept(conv):
    before = onnx.load(small_bundles.healthy_onnx())
    model = conv(calibration="minmax").make("static").model
    first = next(n.name for n in before.graph.node if n.op_type == "Conv")
    names = [node.name for node in before.graph.node]
    front = names[: names.index(first)]
    assert front
    after = {node.name: node for node in model.graph.node}
    produced = {name for node in before.graph.node if node.name in front for name in node.output}
    last = next(n.input[0] for n in before.graph.node if n.name == first)
    for node in model.graph.node:  # the one that quantises is what the convolution takes
        if node.op_type == "QuantizeLinear" and node.input[0] in produced:
            assert node.input[0] == last
    assert set(front) <= set(after)
    assert {i.name for i in before.graph.input} == {i.name for i in model.graph.input}
    assert {o.name for o in before.graph.output} == {o.name for o in model.graph.output}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_calibration_gives_a_working_file(conv, method):
    lowered = conv(calibration=method).make("static")
    assert lowered.facts["calibration"] == method
    assert lowered.facts["error"] < 0.3, "twelve samples are few for percentiles"


def test_auto_takes_the_calibration_that_errs_least(conv):
    errors = {m: conv(calibration=m).make("static").facts["error"] for m in _int8.METHODS}
    chosen = conv().make("static").facts
    assert chosen["error"] == pytest.approx(min(errors.values()))
    assert errors[chosen["calibration"]] == pytest.approx(chosen["error"])


def test_nodes_that_are_left_are_fp32(conv):
    way = conv(calibration="minmax")
    first = way.make("static")
    graph = onnx.load(small_bundles.healthy_onnx()).graph
    _, second = (node.name for node in graph.node if node.op_type == "Conv")
    lowered = way.make("static", [second])
    assert list(lowered.left) == [second]
    assert lowered.nodes == first.nodes
    node = next(n for n in lowered.model.graph.node if n.name == second)
    weight = next(t for t in lowered.model.graph.initializer if t.name == node.input[1])
    assert weight.data_type == TensorProto.FLOAT
    whole = way.make("static", way.dearest("static"))
    assert whole.facts["error"] < 1e-6
    assert len(whole.left) == whole.nodes


def test_matrix_products_may_be_static_or_dynamic(wish):
    x = lossy.draw(8, 32)
    way = Int8(wish(dense(), x, calibration="minmax"))
    assert way.forms == ("static-dense", "dynamic")
    static, dynamic = (way.make(form) for form in way.forms)
    kinds = {n.op_type for n in dynamic.model.graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    assert {n.domain for m in (static, dynamic) for n in m.model.graph.node} == {""}
    assert static.facts["error"] < 0.03
    assert dynamic.facts["error"] < 0.03
    assert "batch" in dynamic.notes[0]
    assert static.notes == ()


def test_static_rows_do_not_depend_on_their_batch_and_dynamic_ones_do(wish, tmp_path):
    x = lossy.draw(8, 32)
    x[-1] *= 50
    way = Int8(wish(dense(), x, calibration="minmax"))
    moved = {}
    for form in way.forms:
        session = Session(save(way.make(form).model, tmp_path / "asked.onnx"))
        alone = session({"x": x[:1]})["y"]
        moved[form] = np.abs(session({"x": x})["y"][:1] - alone).max()
    assert moved["static-dense"] < 1e-6
    assert moved["dynamic"] > 1e-3, "as the note says"


def test_the_dearest_node_is_the_one_of_the_outliers(wish):
    way = Int8(wish(lossy.layer_of_outliers(), lossy.draw(12), calibration="minmax"))
    for form in way.forms:
        assert way.dearest(form)[0] == "second"
        assert way.make(form).facts["error"] > 0.3
        assert way.make(form, ["second"]).facts["error"] < 0.1


def test_a_spectrogram_in_the_graph_stays_fp32(wish):
    rng = np.random.default_rng(0)
    arrays = {
        "filters": rng.normal(size=(32, 8)).astype("f4"),
        "floor": np.float32(1e-6),
        "w": rng.normal(size=(8, 64)).astype("f4"),
        "w2": rng.normal(size=(64, 4)).astype("f4"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "filters"], ["s"], name="transform"),
        helper.make_node("Mul", ["s", "s"], ["p"], name="power"),
        helper.make_node("Add", ["p", "floor"], ["q"], name="add_floor"),
        helper.make_node("Log", ["q"], ["l"], name="log"),
        helper.make_node("MatMul", ["l", "w"], ["h"], name="learned"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="answer"),
    ]
    model = lossy.model(nodes, arrays, {"x": 32}, {"y": 4})
    lowered = Int8(wish(model, lossy.draw(6, 32), calibration="minmax")).make("static-dense")
    constants = {t.name: t.data_type for t in lowered.model.graph.initializer}
    assert constants["filters"] == TensorProto.FLOAT
    assert lowered.nodes == 2
    assert "w" not in constants


def test_products_of_two_answers_are_left_alone(wish):
    """Attention multiplies what it computed: there are no weights to make smaller."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="weighted"),
        helper.make_node("Transpose", ["a"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["m"], name="attention"),
        helper.make_node("MatMul", ["m", "a"], ["y"], name="mix"),
    ]
    arrays = {"w": np.random.default_rng(0).normal(size=(32, 4)).astype("f4")}
    model = lossy.model(nodes, arrays, {"x": 32}, {"y": 4})
    for form in ("static-dense", "dynamic"):
        way = Int8(wish(model, lossy.draw(4, 32), calibration="minmax"))
        assert way.make(form).nodes == 1


def test_what_cannot_be_int8_is_refused_with_the_reason(wish, conv):
    bare = lossy.model([helper.make_node("Tanh", ["x"], ["y"])], {}, {"x": 4}, {"y": 4})
    with pytest.raises(ExportError, match="none among Tanh"):
        Int8(wish(bare, lossy.draw(3, 4)))
    done = conv(calibration="minmax").make("static").model
    with pytest.raises(ExportError, match="quantised already"):
        Int8(wish(done, small_bundles.images(3)))
    with pytest.raises(OptionError, match="--quantization static"):
        Int8(wish(convolutions_alone(), np.ones((2, 3, 8, 8), "f4"), quantization="dynamic"))


def test_only_the_asked_quantization_is_tried(wish):
    x = lossy.draw(4, 32)
    for wanted, forms in (("static", ("static-dense",)), ("dynamic", ("dynamic",))):
        assert Int8(wish(dense(), x, quantization=wanted)).forms == forms


def test_the_quantisers_say_nothing_and_leave_logging_alone(conv, capfd):
    before = list(logging.root.handlers), logging.root.manager.disable
    conv(calibration="percentile").make("static")
    assert capfd.readouterr() == ("", "")
    assert (list(logging.root.handlers), logging.root.manager.disable) == before


def test_seven_bits_where_the_cpu_would_overflow(conv, monkeypatch):
    largest = {}
    for narrow in (False, True):
        monkeypatch.setattr(_int8, "saturates", lambda s=narrow: s)
        model = conv(calibration="minmax").make("static").model
        largest[narrow] = max(
            int(np.abs(numpy_helper.to_array(t).astype(int)).max())
            for t in model.graph.initializer
            if t.name.endswith("weight_quantized")
        )
    assert largest[False] == 127
    assert largest[True] <= 64


def test_large_networks_are_calibrated_by_fewer_samples(conv, monkeypatch):
    monkeypatch.setattr(_calibration, "MOST_VALUES", 1)
    monkeypatch.setattr(_calibration, "LEAST_SAMPLES", 3)
    way = conv(calibration="percentile")
    seen = []
    way._wish = dataclasses.replace(way._wish, progress=lambda *told: seen.append(told))
    way.make("static")
    assert seen[-1] == ("calibrate (percentile)", 3, 3)


def test_samples_are_picked_from_first_to_last():
    samples = [{"x": np.array([n])} for n in range(10)]
    picked = [int(each["x"][0]) for each in _calibration.spread(samples, 4)]
    assert picked == [0, 2, 5, 7]
    assert len(_calibration.spread(samples, 99)) == 10


def test_what_the_quantisers_raise_is_told_in_three_parts(conv, monkeypatch):
    def refuse(*args, **more):
        raise KeyError("a node that nobody knows")

    monkeypatch.setattr(_int8, "QDQQuantizer", refuse)
    with pytest.raises(ExportError, match="KeyError: 'a node that nobody knows'"):
        conv(calibration="minmax").make("static")


def channels_of_many_sizes() -> onnx.ModelProto:
    """Three convolutions; the second's channels differ a thousandfold in size, the third evens out.

    One scale for all its channels leaves most of them nothing.
    """
    rng = np.random.default_rng(0)
    sizes = np.logspace(-3, 0, 8).astype("f4")[:, None, None, None]
    arrays = {
        "w1": rng.normal(0, 0.5, (8, 3, 1, 1)),
        "w2": rng.normal(0, 0.5, (8, 1, 3, 3)) * sizes,
        "w3": rng.normal(0, 0.5, (4, 8, 1, 1)) / sizes[:, :, 0, 0][None, :, :, None],
    }
    weights = [numpy_helper.from_array(a.astype("f4"), name) for name, a in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["a1"], name="relu1"),
        helper.make_node("Conv", ["a1", "w2"], ["h2"], name="second", group=8, pads=[1] * 4),
        helper.make_node("Conv", ["h2", "w3"], ["y"], name="third"),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])
    graph = helper.make_graph(nodes, "g", [image], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_onnx_runtime_too_leaves_in_fp32_what_is_left_in_fp32(wish, tmp_path):
    """Its own optimiser makes int8 of a convolution between two int8 ones, by a single scale."""
    x = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype("f4")
    way = Int8(wish(channels_of_many_sizes(), x, calibration="minmax"))
    kept = way.make("static", ["second"])
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(
        kept.model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    loaded = onnx.load(tmp_path / "optimised.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
    assert any(a.dtype == np.float32 and a.size == 72 for a in held.values())
    assert not any(a.dtype == np.int8 and a.size == 72 for a in held.values())
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [
        ort.InferenceSession(kept.model.SerializeToString(), s, providers=["CPUExecutionProvider"])
        for s in (plain, ort.SessionOptions())
    ]
    unoptimised, served = (session.run(None, {"x": x[:1]})[0] for session in sessions)
    assert np.linalg.norm(served - unoptimised) < 0.02 * np.linalg.norm(unoptimised)
