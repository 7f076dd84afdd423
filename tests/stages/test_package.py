from __future__ import annotations

import pytest
from serving import bundles

from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.errors import BundleError, OptionError, ParityError, RepositoryError, TlexportError
from tlexport.options import PackageOptions
from tlexport.reports import LabelFlip, PackageReport
from tlexport.serving import config
from tlexport.stages.package import package


@pytest.fixture
def place(tmp_path):
    return tmp_path / "models"


def test_the_report_tells_what_was_written(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    steps = []
    report = package(bundle.root, place, progress=lambda *step: steps.append(step))
    assert (report.model, report.version, report.max_batch) == ("insects", 1, 8)
    assert report.instances * report.threads <= report.cores == cores()
    assert report.triton_oldest == "24.05"
    assert "1/model.onnx" in report.files
    assert all((place / "insects" / file).is_file() for file in report.files)
    assert bundle.report("package", PackageReport) == report
    assert steps[-1] == ("package", 2, 2)


def test_options_reach_the_configuration(tmp_path, place):
    options = PackageOptions(
        name="other", max_batch=4, queue_delay_us=7, instances=1, threads=1, keep_versions=3
    )
    package(bundles.make(tmp_path / "b.bundle"), place, options)
    found = config.parse(place / "other/config.pbtxt")
    assert (found.name, found.max_batch_size) == ("other", 4)
    assert found.dynamic_batching.max_queue_delay_microseconds == 7
    assert found.version_policy.latest.num_versions == 3
    assert found.parameters["intra_op_thread_count"].string_value == "1"


def refuse(bundle: Bundle, place, error: type[TlexportError], message: str, **options):
    with pytest.raises(error, match=message) as caught:
        package(bundle.root, place, PackageOptions(**options))
    assert not place.exists()
    return caught.value


def test_no_report(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle", proven=False)
    error = refuse(bundle, place, ParityError, "got: no report")
    assert error.exit_code == 3
    assert "tlexport verify" in error.fix


def test_a_report_that_failed(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    check = bundles.parity(bundle).checks[0]
    failed = type(check)(
        check="answers",
        batch=2,
        output="logits",
        max_abs=1.0,
        max_rel=1.0,
        scale=1.0,
        worst_index=(0, 0),
        passed=False,
        reason="sample 0 differs by 1",
    )
    report = bundles.parity(bundle, checks=(check, failed), passed=False)
    bundle.write_report("parity-onnx-fp32", report)
    refuse(bundle, place, ParityError, "one that failed: sample 0 differs by 1")


def test_a_report_of_changed_labels_or_of_nothing(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    flip = LabelFlip(
        sample=0, output="logits", reference="ant", candidate="bee", margin=1.0, forgiven=False
    )
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, flips=(flip,), passed=False))
    refuse(bundle, place, ParityError, "one that failed: 1 changed labels")
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, checks=()))
    refuse(bundle, place, ParityError, "without a single check")


def test_a_report_of_another_file(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    other = bundles.make(tmp_path / "other.bundle", seed=1)
    bundle.write_report("parity-onnx-fp32", bundles.parity(other))
    refuse(bundle, place, ParityError, "a report of onnx-fp32 [0-9a-f]{12}")


def test_a_report_of_other_weights(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, weights_sha256="0" * 64))
    refuse(bundle, place, ParityError, "parity report of the weights")


def test_a_report_that_cannot_be_read(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    (bundle.root / "reports/parity-onnx-fp32.json").write_text("{")
    refuse(bundle, place, ParityError, "a passing parity report")


def test_a_file_changed_after_it_was_proven(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    file = bundle.artifact_file(bundle.artifact("onnx-fp32"))
    file.write_bytes(file.read_bytes() + b"\0")
    refuse(bundle, place, BundleError, "changed after it was made")


def test_a_missing_artifact(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    refuse(bundle, place, BundleError, "an artifact 'onnx-int8'", artifact="onnx-int8")


def test_a_release_that_cannot_read_it(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle", options={"opset": 23, "ir_version": 11})
    error = refuse(bundle, place, OptionError, "a file that Triton 24.10 reads", triton="24.10")
    assert "opset 23, IR 11" in error.got
    assert "25.08 or newer" in error.fix
    refuse(bundle, place, OptionError, "did you mean '24.12'", triton="24.13")
    assert package(bundle, place, PackageOptions(triton="25.08")).triton_oldest == "25.08"


def test_more_threads_than_cores(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    many = cores() + 1
    refuse(bundle, place, OptionError, f"1 x {many} = {many}", threads=many)


def test_a_tolerance_that_proves_nothing(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, tolerance=1e9))
    refuse(bundle, place, ParityError, "at --tolerance of at most 0.01")
    floor = {"criterion": "noise floor", "tolerance": None}
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, **floor, factor=1e4))
    refuse(bundle, place, ParityError, "at --factor of at most 8")
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, tolerance=None, atol=0.5))
    refuse(bundle, place, ParityError, "at --atol and --rtol")
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle, **floor, factor=8.0))
    assert package(bundle, place).version == 1


def test_no_larger_batch_than_was_proven(tmp_path, place):
    bundle = bundles.make(tmp_path / "b.bundle")
    with pytest.raises(ParityError, match="--max-batch 32") as caught:
        package(bundle, place, PackageOptions(max_batch=32))
    assert "up to 16" in caught.value.got
    assert not place.exists()


def test_of_what_a_server_would_refuse_nothing_is_written(tmp_path, place, monkeypatch):
    """An operator of nobody's has no opset that is too new, and no server loads it."""
    package(bundles.make(tmp_path / "good.bundle"), place)
    real = bundles.network

    def nobodys(seed):
        model = real(seed)
        model.graph.node[-1].domain = "nobodys"
        return model

    monkeypatch.setattr(bundles, "network", nobodys)
    bundle = bundles.make(tmp_path / "b.bundle")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for name in ("insects", "other"):
        with pytest.raises(RepositoryError, match="onnx-operator") as caught:
            package(bundle.root, place, PackageOptions(name=name))
        assert "operators of nobodys" in str(caught.value)
        after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert after == before
