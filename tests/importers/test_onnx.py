"""--onnx: a file of another tool, which has no original here."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tlexport import networks
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import BundleError, DataError, OptionError, ParityError
from tlexport.options import (
    BenchOptions,
    ExportOptions,
    PackageOptions,
    RuntimeOptions,
    VerifyOptions,
)
from tlexport.reports import ParityReport
from tlexport.runtimes import connect
from tlexport.stages.bench import bench
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.verify import verify


class Net(torch.nn.Module):
    """Logits and features of images of any size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        self.head = torch.nn.Linear(16, 3)
        torch.nn.init.normal_(self.head.weight)

    def forward(self, pixels):
        features = torch.relu(self.norm(self.conv(pixels))).mean((2, 3))
        return self.head(features), features


def old_export(path: Path, *, rows: int = 2, axes=None, opset: int = 13) -> Path:
    """By torch's older exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net().eval(),
            (torch.randn(rows, 3, 16, 16),),
            path,
            dynamo=False,
            input_names=["pixels"],
            output_names=["logits", "features"],
            dynamic_axes=axes,
            opset_version=opset,
        )
    return path


FREE = {
    "pixels": {0: "N", 2: "height", 3: "width"},
    "logits": {0: "N"},
    "features": {0: "N"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """old.onnx, samples.npz, answered.npz, labels.txt"""
    folder = tmp_path_factory.mktemp("onnx")
    old_export(folder / "old.onnx", axes=FREE)
    pixels = np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype("f4")
    with torch.inference_mode():
        logits, features = (a.numpy() for a in Net().eval()(torch.from_numpy(pixels)))
    np.savez(folder / "samples.npz", pixels=pixels)
    np.savez(folder / "answered.npz", pixels=pixels, logits=logits, features=features)
    np.savez(folder / "wrong.npz", pixels=pixels, logits=logits + 0.1, features=features)
    np.savez(folder / "half.npz", pixels=pixels, logits=logits)
    (folder / "labels.txt").write_text("ant\nbee\ncow\n")
    return folder


def test_it_is_compared_with_itself_unoptimised(take, tmp_path, files):
    report = take(
        onnx=str(files / "old.onnx"),
        samples=str(files / "samples.npz"),
        labels=str(files / "labels.txt"),
        golden=12,
    )
    assert report.reference == "ort@cpu-plain"
    assert report.inputs == ("pixels:float32[batch,3,height,width]",)
    assert report.outputs == ("logits:float32[batch,3]", "features:float32[batch,16]")
    bundle = Bundle(tmp_path / "b")
    assert bundle.weights.read_bytes() == (files / "old.onnx").read_bytes()
    with pytest.raises(OptionError, match="a network in PyTorch"):
        networks.network(bundle)
    export(bundle)
    parity = verify(bundle)
    assert (parity.reference, parity.passed) == ("ort@cpu-plain", True)
    assert {c.check for c in parity.checks} >= {"height 17", "width 17"}
    assert parity == bundle.report("parity-onnx-fp32", ParityReport)
    measured = bench(bundle, BenchOptions(rounds=6, round_s=0.01, batches=(2,)))
    assert [row.runtime for row in measured.rows] == ["ort@cpu-plain", "ort@cpu"]
    assert package(bundle, tmp_path / "repository").version == 1


def test_it_is_compared_with_the_answers_that_came(take, tmp_path, files):
    report = take(onnx=str(files / "old.onnx"), samples=str(files / "answered.npz"))
    assert report.reference == "golden@bundle"
    export(tmp_path / "b")
    assert verify(tmp_path / "b").passed
    package(tmp_path / "b", tmp_path / "repository")


def test_other_answers_than_the_files_open_no_gate(take, tmp_path, files):
    take(onnx=str(files / "old.onnx"), samples=str(files / "wrong.npz"))
    export(tmp_path / "b")
    report = verify(tmp_path / "b")
    assert not report.passed
    assert "logits" in report.checks[[c.passed for c in report.checks].index(False)].reason
    with pytest.raises(ParityError, match="one that failed"):
        package(tmp_path / "b", tmp_path / "repository")


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ("ort@cpu", "ort@cpu"),
        ("ort@cpu-plain", "ort@cpu-plain"),
        ("golden@bundle", "ort@cpu"),  # its own answers, kept: no more than the file says
    ],
)
def test_nothing_weaker_opens_the_gate(take, tmp_path, files, reference, candidate):
    take(onnx=str(files / "old.onnx"), samples=str(files / "samples.npz"))
    export(tmp_path / "b")
    assert verify(tmp_path / "b", VerifyOptions(reference=reference, candidate=candidate)).passed
    with pytest.raises(ParityError, match="no report"):
        package(tmp_path / "b", tmp_path / "repository")


def test_another_file_in_place_of_the_import_is_found(take, tmp_path, files):
    take(onnx=str(files / "old.onnx"), samples=str(files / "samples.npz"))
    bundle = Bundle(tmp_path / "b")
    export(bundle)
    (tmp_path / "b" / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        verify(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        export(bundle, ExportOptions(force=True))


def test_a_changed_artifact_is_told_from_the_import(take, tmp_path, files):
    """The reference is the imported file, not the artifact: a wrong conversion would show."""
    take(onnx=str(files / "old.onnx"), samples=str(files / "samples.npz"))
    bundle = Bundle(tmp_path / "b")
    export(bundle)
    artifact = bundle.artifact("onnx-fp32")
    model = onnx.load(bundle.artifact_file(artifact))
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, "f4"), bias.name))
    new = tmp_path / "new"
    new.mkdir()
    onnx.save(model, new / "model.onnx")
    from tlexport.bundle import digest_of

    changed = {f: getattr(artifact, f) for f in Artifact.__struct_fields__}
    changed["sha256"] = digest_of(new, ("model.onnx",))
    bundle.add_artifact(Artifact(**changed), new)
    assert not verify(bundle).passed


@pytest.mark.parametrize(("triton", "ir"), [("22.09", 8), (None, 7)])
def test_it_is_restamped_for_a_release(take, tmp_path, files, triton, ir):
    model = onnx.load(files / "old.onnx")
    model.ir_version = 10 if triton else 7
    onnx.save(model, tmp_path / "m.onnx")
    take(onnx=str(tmp_path / "m.onnx"), samples=str(files / "samples.npz"))
    report = export(tmp_path / "b", ExportOptions(triton=triton))
    assert (report.opset, report.ir_version) == (13, ir)
    assert verify(tmp_path / "b").passed


def test_a_constant_batch_of_one_is_served_without_batching(take, tmp_path, files):
    old_export(tmp_path / "fixed.onnx", rows=1)
    report = take(onnx=str(tmp_path / "fixed.onnx"), samples=str(files / "samples.npz"))
    assert "--max-batch 0" in report.notes[0]
    assert "dynamic_axes" in report.notes[0]
    export(tmp_path / "b")
    parity = verify(tmp_path / "b")
    assert parity.passed
    assert {c.batch for c in parity.checks} == {1}
    with pytest.raises(OptionError, match="--max-batch 0"):
        package(tmp_path / "b", tmp_path / "r")
    package(tmp_path / "b", tmp_path / "r", PackageOptions(max_batch=0))
    rows = bench(tmp_path / "b", BenchOptions(rounds=6, round_s=0.01)).rows
    assert {row.batch for row in rows} == {1}


def test_data_beside_the_file_is_taken_along(take, tmp_path, files):
    model = onnx.load(files / "old.onnx")
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    take(onnx=str(tmp_path / "m.onnx"), samples=str(files / "samples.npz"))
    assert Bundle(tmp_path / "b").manifest.beside == {}
    (tmp_path / "m.data").unlink()
    export(tmp_path / "b")
    assert verify(tmp_path / "b").passed
    with pytest.raises(DataError, match=r"no file 'm\.data'"):
        take(onnx=str(tmp_path / "m.onnx"), samples=str(files / "samples.npz"))


def test_data_too_large_for_one_file_stays_beside(take, tmp_path, files, monkeypatch):
    from tlexport.importers import onnx as importer

    model = onnx.load(files / "old.onnx")
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0
    )
    monkeypatch.setattr(importer, "INLINE_BYTES", 10)
    take(onnx=str(tmp_path / "m.onnx"), samples=str(files / "samples.npz"))
    bundle = Bundle(tmp_path / "b")
    export(bundle)
    assert verify(bundle).passed
    data = tmp_path / "b" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BundleError, match=r"model\.onnx\.data"):
        verify(bundle)


def graph(inputs, outputs, nodes, initializers=()) -> onnx.ModelProto:
    nodes = [n if isinstance(n, onnx.NodeProto) else helper.make_node(*n) for n in nodes]
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_constants_that_are_inputs_too_are_none(take, tmp_path):
    scale = onnx.numpy_helper.from_array(np.array([2.0], "f4"), "scale")
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    model = graph(
        [value("x", ["b", 2]), value("scale", [1])], [value("y", ["b", 2])], [node], [scale]
    )
    onnx.save(model, tmp_path / "m.onnx")
    report = take(onnx=str(tmp_path / "m.onnx"), inputs=("x:float32[batch,2]=0..1",))
    assert report.inputs == ("x:float32[batch,2]=0..1",)


def test_a_vocabulary_is_read_off_the_table_that_is_looked_up(take, tmp_path):
    table = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(9, 2)), "table")
    nodes = [("Cast", ["ids"], ["long"]), ("Gather", ["table", "long"], ["y"])]
    cast = helper.make_node(*nodes[0], to=TensorProto.INT64)
    ids = value("ids", ["b", "n"], TensorProto.INT32)
    out = value("y", ["b", "n", 2], TensorProto.DOUBLE)
    onnx.save(graph([ids], [out], [cast, nodes[1]], [table]), tmp_path / "m.onnx")
    report = take(onnx=str(tmp_path / "m.onnx"))
    assert report.inputs == ("ids:int32[batch,n]=0..8",)
    assert report.outputs == ("y:float64[batch,n,2]",)


REFUSED = {
    "no range": (
        graph([value("x", ["b", 2])], [value("y", ["b", 2])], [("Relu", ["x"], ["y"])]),
        OptionError,
        "never drawn blindly",
    ),
    "batch of 4": (
        graph([value("x", [4, 2])], [value("y", [4, 2])], [("Relu", ["x"], ["y"])]),
        DataError,
        "the constant 4",
    ),
    "one input free": (
        graph(
            [value("x", ["b", 2]), value("z", [1, 2])],
            [value("y", ["b", 2])],
            [("Add", ["x", "z"], ["y"])],
        ),
        DataError,
        "all inputs have free, or none",
    ),
    "output stuck": (
        graph([value("x", ["b", 2])], [value("y", [1, 2])], [("Relu", ["x"], ["y"])]),
        DataError,
        "free in every output",
    ),
    "texts": (
        graph(
            [value("x", ["b"], TensorProto.STRING)],
            [value("y", ["b"], TensorProto.STRING)],
            [("Identity", ["x"], ["y"])],
        ),
        DataError,
        "numbers of a known rank",
    ),
    "unknown operator": (
        graph([value("x", ["b", 2])], [value("y", ["b", 2])], [("Nonsense", ["x"], ["y"])]),
        DataError,
        "holds valid",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_cannot_be_served_are_refused(take, tmp_path, kind):
    model, error, told = REFUSED[kind]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(error, match=told):
        take(onnx=str(tmp_path / "m.onnx"))


def test_other_bad_requests(take, tmp_path, files):
    (tmp_path / "text.onnx").write_text("hello")
    samples = str(files / "samples.npz")
    for options, error, told in (
        ({"onnx": str(tmp_path / "none.onnx")}, OptionError, "no file"),
        ({"onnx": str(tmp_path / "text.onnx")}, DataError, "an ONNX file"),
        ({"onnx": str(files / "old.onnx"), "weights": "w"}, OptionError, "without --weights"),
        (
            {"onnx": str(files / "old.onnx"), "samples": samples, "output_names": ("logits",)},
            OptionError,
            "taken over as it is",
        ),
        (
            {"onnx": str(files / "old.onnx"), "samples": str(files / "half.npz")},
            DataError,
            "for all outputs or none",
        ),
    ):
        with pytest.raises(error, match=told):
            take(**options)


def test_the_plain_runtime_of_a_model_with_an_original_is_its_artifact(digits_bundle):
    bundle = Bundle(digits_bundle)
    golden = bundle.golden()
    runtime = connect("ort@cpu-plain", bundle, RuntimeOptions())
    answer = runtime({name: array[:2] for name, array in golden.inputs.items()})
    wanted = golden.outputs["logits"][:2]
    np.testing.assert_allclose(answer["logits"], wanted, atol=1e-4 * np.abs(wanted).max())
    assert "opened_sha256" not in runtime.facts()
    runtime.close()
