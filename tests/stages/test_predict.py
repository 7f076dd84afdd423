"""Raw files in, labels and probabilities out."""

from __future__ import annotations

import shutil

import pytest

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError, ServerError
from tlexport.options import PredictOptions
from tlexport.stages.predict import predict


@pytest.fixture
def files(digits_bundle):
    """The golden samples as they came, and their true labels."""
    bundle = Bundle(digits_bundle)
    return [(bundle.raw(sample), sample.label) for sample in bundle.golden().samples[:9]]


def test_files_get_their_likeliest_labels_in_order(digits_bundle, files):
    report = predict(digits_bundle, [path for path, _ in files], PredictOptions(top=4, batch=4))
    assert report.runtime == "ort@cpu", "the export is what is served, so it is asked by default"
    assert [p.source for p in report.predictions] == [str(path) for path, _ in files]
    for prediction in report.predictions:
        assert len(prediction.labels) == len(prediction.probabilities) == 4
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        assert set(prediction.labels) <= set("0123456789")
        assert not prediction.error
    right = sum(
        p.labels[0] == label for p, (_, label) in zip(report.predictions, files, strict=True)
    )
    assert right >= 6


def test_more_labels_than_there_are_give_all_and_probabilities_of_one(digits_bundle, files):
    (prediction,) = predict(digits_bundle, [files[0][0]], PredictOptions(top=50)).predictions
    assert sorted(prediction.labels) == list("0123456789")
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_without_an_export_the_original_is_asked_and_says_the_same(digits_bundle, files, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "b", ignore=shutil.ignore_patterns("artifacts"))
    paths = [path for path, _ in files]
    eager, exported = predict(tmp_path / "b", paths), predict(digits_bundle, paths)
    assert (eager.runtime, exported.runtime) == ("eager@cpu", "ort@cpu")
    for one, other in zip(eager.predictions, exported.predictions, strict=True):
        assert one.labels[0] == other.labels[0]
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_a_broken_file_alone_fails(digits_bundle, files, tmp_path):
    bad, cut = tmp_path / "bad.png", tmp_path / "cut.png"
    bad.write_text("not an image")
    cut.write_bytes(files[1][0].read_bytes()[:64])
    paths = [files[0][0], bad, files[1][0], cut]
    for batch in (1, 2, 8):
        found = predict(digits_bundle, paths, PredictOptions(batch=batch)).predictions
        assert [bool(p.error) for p in found] == [False, True, False, True]
        assert "no image" in found[1].error
        assert found[1].labels == found[3].labels == ()
        alone = predict(digits_bundle, [files[1][0]]).predictions[0]
        assert found[2].labels == alone.labels


def test_missing_files_are_all_named_and_nothing_is_asked(digits_bundle, files, tmp_path):
    with pytest.raises(DataError, match="files to ask about") as caught:
        predict(digits_bundle, [files[0][0], tmp_path / "no1.png", tmp_path, tmp_path / "no2.png"])
    for name in ("no1.png", "no2.png"):
        assert name in caught.value.got
    with pytest.raises(DataError, match="none named"):
        predict(digits_bundle, [])


def test_a_source_that_is_neither_bundle_nor_server_is_told(files, tmp_path):
    paths = [files[0][0]]
    with pytest.raises(BundleError, match=r"bundle\.json"):
        predict(tmp_path, paths)
    with pytest.raises(OptionError, match="a runtime of"):
        predict("tvm@localhost:1", paths)
    with pytest.raises((ServerError, OptionError)) as caught:
        predict("triton@127.0.0.1:1", paths)
    assert caught.value.fix


def test_a_folder_with_an_at_sign_is_a_bundle(digits_bundle, files, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "me@home")
    assert predict(tmp_path / "me@home", [files[0][0]]).predictions[0].labels


def test_an_artifact_that_is_stale_is_refused(digits_bundle, files, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "b")
    (tmp_path / "b" / "artifacts" / "onnx-fp32" / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="sha256"):
        predict(tmp_path / "b", [files[0][0]])
