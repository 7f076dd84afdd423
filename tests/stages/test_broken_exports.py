"""Broken exports are caught, each with its cause by name; exit code and report say so."""

import broken_exports
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.reports import ParityReport
from tlexport.stages.verify import verify


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    place = tmp_path_factory.mktemp("healthy") / "model.onnx"
    return broken_exports.exported(broken_exports.How(), place)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch, broken_exports.Mixed)
    return small_bundles.make(tmp_path / "b", network=broken_exports.Mixed())


def test_the_healthy_one_passes(bundle, healthy):
    small_bundles.put_artifact(bundle, healthy)
    report = verify(bundle)
    assert report.passed, report.causes
    assert report.causes == ()
    assert 0.1 < report.ratio < 4


@pytest.mark.parametrize("broken", broken_exports.EVERY, ids=lambda broken: broken.name)
def test_a_broken_export_is_caught_and_its_cause_named(bundle, healthy, tmp_path, broken):
    small_bundles.put_artifact(bundle, broken.make(healthy, tmp_path / "broken.onnx"))
    report = verify(bundle)
    assert not report.passed
    names = [cause.name for cause in report.causes]
    assert broken.cause in names[:2], report.causes
    told = next(cause.told for cause in report.causes if cause.name == broken.cause)
    assert broken.told in told
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) == report
