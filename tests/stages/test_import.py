"""Imported models are served by a real Triton, and answer there as they did at home."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from importers import test_huggingface as folders
from importers import test_onnx as onnx_files

import tlexport
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError, SpecError
from tlexport.options import (
    ExportOptions,
    ImportOptions,
    PackageOptions,
    PredictOptions,
    RuntimeOptions,
    VerifyOptions,
)
from tlexport.stages.evaluate import evaluate
from tlexport.stages.export import export
from tlexport.stages.import_ import import_model
from tlexport.stages.package import package
from tlexport.stages.predict import predict
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify

LABELS = ("ant", "bee", "cow")
CODE = Path(__file__).parents[1] / "importers"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, ImportOptions]:
    """Name -> a model as somebody may have it."""
    folder = tmp_path_factory.mktemp("models")
    onnx_files.old_export(folder / "old.onnx", axes=onnx_files.FREE)
    onnx_files.old_export(folder / "fixed.onnx", rows=1)
    pixels = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype("f4")
    with torch.inference_mode():
        logits, features = (a.numpy() for a in onnx_files.Net().eval()(torch.from_numpy(pixels)))
    np.savez(folder / "answered.npz", pixels=pixels, logits=logits, features=features)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    folders.vit(folder / "vit", **folders.LABELS)
    folders.bert(folder / "bert", **folders.LABELS)
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=3)
    torch.save(resnet.state_dict(), folder / "resnet.pth")
    numbers = "numbers:float32[batch,4]=-1..1"
    return {
        "two": ImportOptions(module="user_net:two", inputs=(numbers, "ids:int64[batch,n<=30]")),
        "old": ImportOptions(
            onnx=str(folder / "old.onnx"),
            samples=str(folder / "answered.npz"),
            labels=str(folder / "labels.txt"),
        ),
        "fixed": ImportOptions(
            onnx=str(folder / "fixed.onnx"), inputs=("pixels:float32[1,3,16,16]=-1..1",), golden=4
        ),
        "vit": ImportOptions(huggingface=str(folder / "vit"), golden=4),
        "bert": ImportOptions(huggingface=str(folder / "bert"), golden=4),
        "resnet": ImportOptions(
            backbone="torchvision/resnet18",
            weights=str(folder / "resnet.pth"),
            labels=str(folder / "labels.txt"),
            golden=4,
        ),
    }


@pytest.fixture(scope="module")
def bundles(models, tmp_path_factory) -> dict[str, Path]:
    """Each of them imported, exported and verified."""
    root = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CODE)
        for name, options in models.items():
            import_model(root / name, options)
            export(root / name)
            assert verify(root / name).passed, name
    return {name: root / name for name in models}


@pytest.fixture(scope="module")
def repository(bundles, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("served") / "models"
    for name, bundle in bundles.items():
        package(bundle, place, PackageOptions(max_batch=0 if name == "fixed" else 8))
    return place


@pytest.fixture(scope="module")
def server(repository):
    """One server for all."""
    with serve(repository) as serving:
        yield serving


NAMES = ("two", "old", "fixed", "vit", "bert", "resnet")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_served_and_answers_as_the_original(name, server, bundles, monkeypatch):
    monkeypatch.chdir(CODE)
    (model,) = (m for m in server.report.models if m.name == name)
    assert model.golden_max_abs is not None
    report = verify(bundles[name], VerifyOptions(candidate=f"triton@{server.report.grpc}"))
    assert report.passed
    assert report.reference == {"old": "golden@bundle", "fixed": "ort@cpu-plain"}.get(
        name, "eager@cpu"
    )


@pytest.mark.parametrize("name", ["old", "vit", "resnet"])
def test_the_server_knows_its_labels(name, server, bundles, repository):
    bundle = Bundle(bundles[name])
    config = (repository / name / "config.pbtxt").read_text()
    assert config.count("label_filename") == 1
    raw = [bundle.raw(sample) for sample in bundle.manifest.golden[:3]]
    here = predict(bundles[name], raw)
    there = predict(
        f"triton@{server.report.grpc}", raw, PredictOptions(), RuntimeOptions(model=name)
    )
    for ours, theirs in zip(here.predictions, there.predictions, strict=True):
        assert not ours.error
        assert ours.labels == theirs.labels
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)


def test_labels_belong_to_the_output_that_has_them(server, repository, bundles):
    """`two` has none, though an output is as wide as some labels would be."""
    assert "label_filename" not in (repository / "two" / "config.pbtxt").read_text()
    assert "label_filename" in (repository / "bert" / "config.pbtxt").read_text()
    with pytest.raises(OptionError, match="a model that tells labels"):
        bundle = Bundle(bundles["two"])
        predict(bundles["two"], [bundle.raw(bundle.manifest.golden[0])], None)


def test_labelled_arrays_are_evaluated(bundles, tmp_path):
    bundle = Bundle(bundles["old"])
    golden = bundle.golden()
    for row, best in enumerate(golden.outputs["logits"].argmax(1)):
        folder = tmp_path / "data" / LABELS[best]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{row}.npz", pixels=golden.inputs["pixels"][row])
    report = evaluate(bundle, tmp_path / "data")
    assert report.runtime == "ort@cpu"
    assert report.accuracy.value == 1.0
    assert report.against is None
    with pytest.raises(OptionError, match="without labels"):
        evaluate(bundles["two"], tmp_path / "data")


def test_arrays_that_cannot_be_asked_about_say_why(bundles, tmp_path):
    good = np.zeros((3, 16, 16), "f4")
    np.savez(tmp_path / "a.npz", pixels=good)
    np.savez(tmp_path / "b.npz", other=good)
    np.savez(tmp_path / "c.npz", pixels=good.astype("f8"))
    np.savez(tmp_path / "d.npz", pixels=good[:, :8])
    np.save(tmp_path / "e.npy", good[None])
    (tmp_path / "f.npz").write_text("no archive")
    report = predict(bundles["old"], sorted(tmp_path.iterdir()))
    told = [p.error for p in report.predictions]
    assert [bool(error) for error in told] == [False, True, True, True, False, True]
    assert "no array pixels among other" in told[1]
    assert "float64" in told[2]
    assert "--batch 1" in told[3]


def test_a_server_of_another_file_is_found_out(server, bundles, tmp_path, models):
    """The stored answers tell a served model from one that was trained otherwise."""
    other = onnx_files.old_export(tmp_path / "o.onnx", axes=onnx_files.FREE)
    import onnx

    model = onnx.load(other)
    for tensor in model.graph.initializer:
        if tensor.name == "head.bias":
            array = onnx.numpy_helper.to_array(tensor) + 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, other)
    options = ImportOptions(onnx=str(other), inputs=("pixels:float32[batch,3,h,w]=0..1",), golden=4)
    import_model(tmp_path / "b", options)
    export(tmp_path / "b")
    asked = RuntimeOptions(model="old")
    report = verify(tmp_path / "b", VerifyOptions(candidate=f"triton@{server.report.grpc}"), asked)
    assert not report.passed


def test_a_release_that_reads_less_gets_its_file(bundles):
    report = export(bundles["old"], ExportOptions(triton="22.09", force=True))
    assert report.triton_oldest <= "22.09"


def test_a_bundle_holds_its_own_report(bundles):
    told = json.loads((bundles["two"] / "reports" / "import.json").read_text())
    assert told["importer"] == "module"
    assert told["outputs"][2] == "tokens:float32[batch,n,8]"


def test_samples_drawn_are_the_same_for_a_seed(tmp_path, models, monkeypatch):
    monkeypatch.chdir(CODE)
    first, second, third = (
        import_model(tmp_path / str(number), models["two"])
        if number < 2
        else import_model(
            tmp_path / str(number),
            ImportOptions(module="user_net:two", inputs=models["two"].inputs, seed=9),
        )
        for number in range(3)
    )
    assert first.outputs == second.outputs == third.outputs
    golden = [Bundle(tmp_path / str(n)).manifest.golden_sha256 for n in range(3)]
    assert golden[0] == golden[1] != golden[2]


def test_not_one_model_is_refused(tmp_path):
    for options in (ImportOptions(), ImportOptions(onnx="a.onnx", pt2="b.pt2")):
        with pytest.raises(OptionError, match="--backbone, --huggingface, --module, --onnx, --pt2"):
            import_model(tmp_path / "b", options)


def test_a_bundle_in_place_is_kept(tmp_path, models, monkeypatch):
    monkeypatch.chdir(CODE)
    import_model(tmp_path / "b", models["two"])
    before = (tmp_path / "b" / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        import_model(tmp_path / "b", models["two"])
    with pytest.raises(SpecError):
        import_model(
            tmp_path / "b",
            ImportOptions(
                module="user_net:Broken", inputs=("x:float32[batch,4]=0..1",), force=True
            ),
        )
    assert (tmp_path / "b" / "bundle.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("text", ["one\n", "a\na\nb\n", "a\nb\n"])
def test_labels_that_do_not_fit_are_refused(tmp_path, models, monkeypatch, text):
    monkeypatch.chdir(CODE)
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match="labels"):
        import_model(
            tmp_path / "b",
            ImportOptions(
                module="user_net:two", inputs=models["two"].inputs, labels=str(tmp_path / "l.txt")
            ),
        )


@pytest.mark.parametrize(
    ("arrays", "error", "told"),
    [
        ({"numbers": np.zeros((3, 4), "f4")}, DataError, "without ids"),
        ({"numbers": np.zeros((3, 4), "f4"), "ids": np.zeros((2, 5), "i8")}, DataError, "as many"),
        ({"numbers": np.zeros((3, 4)), "ids": np.zeros((3, 5), "i8")}, SpecError, "float64"),
        ({"numbers": np.zeros((3, 4), "f4"), "ids": np.full((3, 5), 20)}, SpecError, "within 0"),
        ({"numbers": np.zeros((0, 4), "f4"), "ids": np.zeros((0, 5), "i8")}, DataError, "one at"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path, monkeypatch, arrays, error, told):
    monkeypatch.chdir(CODE)
    np.savez(tmp_path / "s.npz", **arrays)
    inputs = ("numbers:float32[batch,4]", "ids:int64[batch,n]=0..19")
    options = ImportOptions(module="user_net:two", inputs=inputs, samples=str(tmp_path / "s.npz"))
    with pytest.raises(error, match=told):
        import_model(tmp_path / "b", options)


def test_samples_in_a_folder_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(CODE)
    (tmp_path / "s").mkdir()
    for number in range(3):
        np.save(tmp_path / "s" / f"{number}.npy", np.full((2, 4), number, "f4"))
    options = ImportOptions(
        module="user_net:Longer", inputs=("x:float32[batch,4]",), samples=str(tmp_path / "s")
    )
    report = import_model(tmp_path / "b", options)
    assert report.golden == 6
    np.save(tmp_path / "s" / "9.npy", np.zeros((2, 5), "f4"))
    with pytest.raises(DataError, match="one shape but for their rows"):
        import_model(tmp_path / "c", options)
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "none"):
        options = ImportOptions(
            module="user_net:Longer",
            inputs=("x:float32[batch,4]",),
            samples=str(tmp_path / missing),
        )
        with pytest.raises(DataError):
            import_model(tmp_path / "c", options)


def test_it_is_a_function_of_the_package():
    assert tlexport.import_model is import_model
