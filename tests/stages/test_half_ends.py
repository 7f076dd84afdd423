"""fp16 inputs and outputs: asked for, in the file, on the wire, and never in the user's way."""

from __future__ import annotations

import json
from pathlib import Path

import lossy_networks as lossy
import numpy as np
import onnx
import pytest
import small_bundles
from onnx import TensorProto, helper, numpy_helper

from tlexport.bundle import Bundle
from tlexport.errors import ExportError, OptionError
from tlexport.options import (
    ExportOptions,
    ImportOptions,
    PackageOptions,
    RuntimeOptions,
    VerifyOptions,
)
from tlexport.runtimes import connect
from tlexport.stages.export import export
from tlexport.stages.import_ import import_model
from tlexport.stages.lint import lint
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify

HALF = ExportOptions(precision="fp16", io_precision="fp16")
ASKED = RuntimeOptions(artifact="onnx-fp16")


@pytest.fixture(autouse=True)
def _short_race(monkeypatch):
    monkeypatch.setattr("tlexport.traffic.race.ROUND_S", 0.01)
    monkeypatch.setattr("tlexport.traffic.race.SETTLE_S", 0.0)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "tiny", small_bundles.healthy_onnx())


def imported(folder: Path, model: onnx.ModelProto, samples: np.ndarray) -> Path:
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "samples.npz", x=samples)
    options = ImportOptions(
        onnx=str(folder / "net.onnx"), samples=str(folder / "samples.npz"), name="floats"
    )
    import_model(folder / "floats.bundle", options)
    return folder / "floats.bundle"


def kinds(file: str | Path) -> dict[str, int]:
    graph = onnx.load(file).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}


def test_unless_asked_they_stay_as_they_were(tiny):
    report = export(tiny, ExportOptions(precision="fp16"))
    assert kinds(report.file) == {"images": TensorProto.UINT8, "logits": TensorProto.FLOAT}
    assert Bundle(tiny).artifact("onnx-fp16").io == "fp32"
    again = export(tiny, HALF)
    assert not again.reused
    assert kinds(again.file) == {"images": TensorProto.UINT8, "logits": TensorProto.FLOAT16}
    assert export(tiny, HALF).reused
    notes = {e.key: e.value for e in onnx.load(again.file).metadata_props}
    assert json.loads(notes["tlexport.spec"])["outputs"][0]["dtype"] == "float16"


def test_no_value_goes_there_and_back(tmp_path):
    bundle = imported(tmp_path, lossy.layer_of_outliers(), lossy.draw(12))
    report = export(bundle, HALF)
    model = onnx.load(report.file)
    assert set(kinds(report.file).values()) == {TensorProto.FLOAT16}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        above = makers.get(node.input[0]) if node.op_type == "Cast" else None
        assert above is None or above.op_type != "Cast", f"{above.name} -> {node.name}"


def test_what_asks_it_keeps_to_the_bundles_dtypes(tmp_path):
    bundle = imported(tmp_path, lossy.layer_of_outliers(), lossy.draw(12))
    export(bundle, HALF)
    assert verify(bundle, runtime=ASKED).passed
    home = Bundle(bundle)
    inputs = home.golden().inputs
    answer = connect("ort@cpu", home, ASKED)(inputs)
    (name,) = answer
    assert answer[name].dtype == np.float32
    assert np.array_equal(answer[name], answer[name].astype(np.float16).astype(np.float32))


def test_it_is_served_so_and_asked_as_ever(tiny, tmp_path):
    bundle = imported(tmp_path, lossy.layer_of_outliers(), lossy.draw(12))
    for each in (tiny, bundle):
        export(each, HALF)
        assert verify(each, runtime=ASKED).passed
        package(each, tmp_path / "models", PackageOptions(artifact="onnx-fp16"))
    written = (tmp_path / "models" / "floats" / "config.pbtxt").read_text()
    assert written.count("TYPE_FP16") == 4  # input, output, two warm-ups
    assert not lint(tmp_path / "models").findings
    with serve(tmp_path / "models") as server:
        assert all(model.golden_max_abs is not None for model in server.report.models)
        grpc, http = server.report.grpc, server.report.http
        for where in (f"triton@{grpc}", f"triton@http://{http}", f"triton@shm://{grpc}"):
            for each in (tiny, bundle):
                options = VerifyOptions(candidate=where)
                found = verify(each, options, RuntimeOptions(artifact="onnx-fp16"))
                assert found.passed, [c.reason for c in found.checks if not c.passed]
        bare = connect(f"triton@{grpc}", None, RuntimeOptions(model="floats"))
        assert {t.dtype for t in (*bare.spec.inputs, *bare.spec.outputs)} == {"float16"}
        bare.close()


def test_a_body_of_an_if_reads_them_too(tmp_path):
    """What a branch reads of the outer graph is renamed with it."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["x", "w"], ["b"], name=f"{op}_1")],
            op,
            [],
            [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 4])],
        )
        for op in ("Add", "Mul")
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], name="m", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"], name="c"),
        helper.make_node(
            "If", ["c"], ["i"], name="i", then_branch=branch[0], else_branch=branch[1]
        ),
        helper.make_node("Relu", ["i"], ["y"], name="y"),
    ]
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"),
            numpy_helper.from_array(np.float32(-100), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bundle = imported(tmp_path, model, np.random.default_rng(0).normal(size=(6, 4)).astype("f4"))
    export(bundle, HALF)
    assert verify(bundle, runtime=ASKED).passed


def test_what_float16_cannot_hold_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"], name="y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.float32(1e6), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bundle = imported(tmp_path, model, np.random.default_rng(0).normal(size=(6, 4)).astype("f4"))
    with pytest.raises(ExportError) as caught:
        export(bundle, HALF)
    assert "'y' reaches" in caught.value.got
    assert "--io-precision" in caught.value.fix


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "auto"])
def test_only_fp16_has_them(precision):
    with pytest.raises(OptionError) as caught:
        ExportOptions(precision=precision, io_precision="fp16", data="d")
    assert "--io-precision fp16 with --precision fp16" in caught.value.expected
