"""A bundle that was changed after it was made is told apart."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundles

from tlexport import bundle as bundles
from tlexport.bundle import Bundle, read_tensors, write_tensors
from tlexport.errors import BundleError
from tlexport.reports import Interval


@pytest.fixture
def folder(tmp_path) -> Path:
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


def flip(path: Path, at: int = -1) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read(folder):
    bundle = Bundle(folder)
    golden = bundle.golden()
    assert bundle.weights.name == "weights.safetensors"
    assert golden.inputs["images"].shape == (12, 16, 16, 3)
    assert golden.outputs["logits"].dtype == np.float32
    assert len(golden.samples) == 12
    assert bundle.artifacts() == ["onnx-fp32"]
    artifact = bundle.artifact("onnx-fp32")
    assert bundle.artifact_file(artifact).is_file()
    assert artifact.source_sha256 == bundle.manifest.weights_sha256


def test_a_bundle_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    moved = Bundle(tmp_path / "elsewhere")
    moved.golden()
    assert moved.artifact_file(moved.artifact("onnx-fp32")).is_file()
    assert str(tmp_path) not in (moved.root / "bundle.json").read_text()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_bundle_is_refused(tmp_path, make):
    make(tmp_path / "no")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle(tmp_path / "no")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "spec": 7}', "\0\0", "null"])
def test_a_damaged_manifest_is_refused(folder, text):
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="a bundle folder"):
        Bundle(folder)


def test_another_format_is_refused_and_both_are_named(folder):
    edit_json(folder / "bundle.json", format=99)
    with pytest.raises(BundleError, match="a bundle of format 1") as caught:
        Bundle(folder)
    assert "format 99" in caught.value.got


@pytest.mark.parametrize("tamper", [flip, lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_changed_weights_are_refused(folder, tamper):
    tamper(folder / "weights.safetensors")
    bundle = Bundle(folder)
    with pytest.raises(BundleError, match=r"weights\.safetensors with sha256") as caught:
        _ = bundle.weights
    assert "changed after it was made" in caught.value.fix


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("tamper", [flip, lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_changed_golden_samples_are_refused(folder, side, tamper):
    tamper(folder / "golden" / f"{side}.safetensors")
    with pytest.raises(BundleError, match="golden with sha256"):
        Bundle(folder).golden()


@pytest.mark.parametrize("tamper", [flip, lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_a_changed_artifact_is_refused(folder, tamper):
    tamper(folder / "artifacts" / "onnx-fp32" / "model.onnx")
    with pytest.raises(BundleError, match="onnx-fp32 with sha256"):
        Bundle(folder).artifact("onnx-fp32")


def test_a_stale_artifact_is_refused_and_the_fix_is_to_export_again(folder):
    edit_json(folder / "artifacts" / "onnx-fp32" / "artifact.json", source_sha256="0" * 64)
    with pytest.raises(BundleError, match="made from weights") as caught:
        Bundle(folder).artifact("onnx-fp32")
    assert "made from 000000000000" in caught.value.got
    assert "tlexport export" in caught.value.fix


@pytest.mark.parametrize("labels", [["dog", "cat", "eel", "fox"], ["cat", "dog"]])
def test_labels_that_changed_after_the_export_make_it_stale(folder, labels):
    made = Bundle(folder)
    name = made.artifacts()[0]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder / "artifacts" / name, place, dirs_exist_ok=True)
        made.add_artifact(made.artifact(name), Path(place))
    assert Bundle(folder).artifact(name).sha256
    spec = json.loads((folder / "bundle.json").read_text())["spec"]
    edit_json(folder / "bundle.json", spec=spec | {"labels": labels})
    with pytest.raises(BundleError, match=r"labels in bundle\.json") as caught:
        Bundle(folder).artifact(name)
    assert "tlexport export" in caught.value.fix


@pytest.mark.parametrize("count", [0, 3, 24])
def test_golden_samples_that_are_not_the_rows_are_refused(folder, count):
    edit_json(folder / "bundle.json", golden=[{"file": "0.png"}] * count)
    with pytest.raises(BundleError, match=f"each of {count} samples") as caught:
        Bundle(folder).golden()
    assert caught.value.got.startswith("12 rows")


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "cat.jpg").write_text("x")
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        Bundle(tmp_path / "cat.jpg")


def test_an_artifact_that_is_not_there_is_answered_with_those_that_are(folder):
    with pytest.raises(BundleError, match="onnx-int8") as caught:
        Bundle(folder).artifact("onnx-int8")
    assert caught.value.got == "onnx-fp32"
    shutil.rmtree(folder / "artifacts")
    with pytest.raises(BundleError, match="no artifacts"):
        Bundle(folder).artifact("onnx-fp32")


def test_adding_an_artifact_replaces_the_older_one_whole(folder, tmp_path):
    bundle = Bundle(folder)
    old = bundle.artifact("onnx-fp32")
    (folder / "artifacts" / "onnx-fp32" / "leftover").write_text("x")
    new = tmp_path / "new"
    new.mkdir()
    (new / "model.onnx").write_bytes(b"another")
    artifact = msgspec.structs.replace(old, sha256=bundles.digest_of(new, ("model.onnx",)))
    bundle.add_artifact(artifact, new)
    assert bundle.artifact("onnx-fp32") == artifact
    place = folder / "artifacts"
    assert sorted(p.name for p in place.rglob("*") if p.is_file()) == [
        "artifact.json",
        "model.onnx",
    ]
    assert [p.name for p in place.iterdir()] == ["onnx-fp32"]


def test_the_digest_of_several_files_holds_names_and_contents(tmp_path):
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text(text)
    first = bundles.digest_of(tmp_path, ("a", "b"))
    assert first == bundles.digest_of(tmp_path, ("b", "a"))
    (tmp_path / "b").write_text("1")
    (tmp_path / "a").write_text("2")
    assert bundles.digest_of(tmp_path, ("a", "b")) != first


def test_reports_are_kept_replaced_and_read_back(folder):
    bundle = Bundle(folder)
    assert bundle.report("train", Interval) is None
    bundle.write_report("train", Interval(value=0.5, low=0.25, high=0.75))
    bundle.write_report("train", Interval(value=0.75, low=0.5, high=1.0))
    assert bundle.report("train", Interval) == Interval(value=0.75, low=0.5, high=1.0)
    (folder / "reports" / "train.json").write_text('{"value": "high"}')
    with pytest.raises(BundleError, match="a train report"):
        bundle.report("train", Interval)


def test_tensors_come_back_as_they_were(tmp_path):
    given = {
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],  # not contiguous
        "none": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    write_tensors(tmp_path / "t.safetensors", given)
    found = read_tensors(tmp_path / "t.safetensors")
    assert set(found) == set(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, data):
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="a safetensors file"):
        read_tensors(tmp_path / "t.safetensors")
