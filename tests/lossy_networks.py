"""Small networks that a lower precision breaks, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = ("ant", "bee", "cow", "dog")


def model(nodes, arrays, inputs, outputs, *, opset: int = 20) -> onnx.ModelProto:
    """A checked model; `inputs` and `outputs` map names to widths of float32 [batch, width]."""

    def infos(widths):
        kind = TensorProto.FLOAT
        return [helper.make_tensor_value_info(n, kind, ["batch", w]) for n, w in widths.items()]

    graph = helper.make_graph(
        nodes,
        "planted",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="a test"
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def norm_that_overflows() -> onnx.ModelProto:
    """A layer norm in single steps, of values in the thousands: their squares overflow in fp16."""
    rng = np.random.default_rng(0)
    arrays = {
        "first": rng.normal(0, 1000, (8, 32)).astype("f4"),
        "last": rng.normal(0, 0.3, (32, 4)).astype("f4"),
        "two": np.float32(2),
        "eps": np.float32(1e-12),
        "axes": np.array([-1]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["wide"], name="widen"),
        helper.make_node("Pow", ["wide", "two"], ["squares"], name="square"),
        helper.make_node("ReduceMean", ["squares", "axes"], ["variance"], name="mean"),
        helper.make_node("Add", ["variance", "eps"], ["safe"], name="add_eps"),
        helper.make_node("Sqrt", ["safe"], ["deviation"], name="root"),
        helper.make_node("Div", ["wide", "deviation"], ["even"], name="divide"),
        helper.make_node("MatMul", ["even", "last"], ["y"], name="answer"),
    ]
    return model(nodes, arrays, {"x": 8}, {"y": 4})


def eps_that_vanishes() -> onnx.ModelProto:
    """x / (|x| + 1e-9) * 1e-9 / 1e-9: zeros are kept apart by a number that fp16 has not."""
    arrays = {"eps": np.float32(1e-9), "weight": np.eye(4, dtype="f4")}
    nodes = [
        helper.make_node("Abs", ["x"], ["size"], name="size_of"),
        helper.make_node("Add", ["size", "eps"], ["safe"], name="add_eps"),
        helper.make_node("Div", ["x", "safe"], ["sign"], name="divide"),
        helper.make_node("MatMul", ["sign", "weight"], ["y"], name="answer"),
    ]
    return model(nodes, arrays, {"x": 4}, {"y": 4})


def logarithm_of_little() -> onnx.ModelProto:
    """The log of powers from 1e-9 to 1, as a spectrogram takes it."""
    arrays = {"floor": np.float32(1e-9), "weight": np.eye(4, dtype="f4")}
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["power"], name="square"),
        helper.make_node("Add", ["power", "floor"], ["safe"], name="add_floor"),
        helper.make_node("Log", ["safe"], ["level"], name="log"),
        helper.make_node("MatMul", ["level", "weight"], ["y"], name="answer"),
    ]
    return model(nodes, arrays, {"x": 4}, {"y": 4})


def layer_of_outliers(width: int = 16) -> onnx.ModelProto:
    """Three layers; what goes into the second has one channel of 30,000 beside those that matter.

    One scale for all of it has steps of over a hundred: the others become zero.
    """
    rng = np.random.default_rng(1)
    arrays = {
        "w1": rng.normal(0, 0.5, (8, width)).astype("f4"),
        "b1": rng.normal(0, 0.1, width).astype("f4"),
        "w2": rng.normal(0, 0.4, (width, width)).astype("f4"),
        "w3": rng.normal(0, 0.6, (width, len(LABELS))).astype("f4"),
        "b3": np.zeros(len(LABELS), "f4"),
    }
    arrays["w1"][:, 0] = 0
    arrays["b1"][0] = 30_000
    arrays["w2"][0] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["a1"], name="relu1"),
        helper.make_node("MatMul", ["a1", "w2"], ["h2"], name="second"),
        helper.make_node("Relu", ["h2"], ["a2"], name="relu2"),
        helper.make_node("Gemm", ["a2", "w3", "b3"], ["logits"], name="third"),
    ]
    made = model(nodes, arrays, {"x": 8}, {"logits": len(LABELS)})
    arrays["b3"] -= answers(made, draw(2000))["logits"].mean(0)
    return model(nodes, arrays, {"x": 8}, {"logits": len(LABELS)})


def draw(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype("f4")


def answers(made: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """What it says in fp32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def examples(made: onnx.ModelProto, root: Path, count: int = 400) -> Path:
    """A folder per label of what `made` itself calls so: in fp32 it is always right."""
    x = draw(count, seed=5)
    for row, label in enumerate(answers(made, x)["logits"].argmax(1)):
        path = root / LABELS[label] / f"{row:03d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=x[row])
    return root
