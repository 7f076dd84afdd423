import json
import subprocess
import sys

import digits
import numpy as np
import planted_faults
import pytest
import small_bundles
import torch

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, ServerError, SpecError
from tlexport.options import PackageOptions, RuntimeOptions, TrainOptions, VerifyOptions
from tlexport.reports import ParityReport
from tlexport.runtimes import ort
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


@pytest.fixture
def with_file(bundle, tmp_path):
    """Verify the bundle with another file in the artifact's place."""

    def run(file, **options):
        small_bundles.put_artifact(bundle, file)
        return verify(bundle, VerifyOptions(**options))

    return run


@pytest.fixture
def with_arrays(with_file, tmp_path):
    """Verify the bundle with the healthy file's weights altered."""

    def run(change, **options):
        edited = small_bundles.edit(small_bundles.healthy_onnx(), tmp_path / "edited.onnx", change)
        return with_file(edited, **options)

    return run


@pytest.fixture
def with_fault(bundle, monkeypatch):
    """Verify the bundle with a candidate that answers `fault(runtime, inputs)`."""

    def run(fault, **options):
        class Faulty:
            def __init__(self, home, where, chosen):
                self._real = ort.open(home, "cpu", chosen)
                self.name, self.spec = f"faulty@{where}", home.spec
                self.facts, self.counters = self._real.facts, self._real.counters
                self.close = self._real.close

            def __call__(self, inputs):
                return fault(self._real, inputs)

        small_bundles.plug_runtime(monkeypatch, "faulty", Faulty)
        return verify(bundle, VerifyOptions(candidate="faulty@here", **options))

    return run


def failed(report):
    """(check, batch) of what failed."""
    return {(check.check, check.batch) for check in report.checks if not check.passed}


def reasons(report):
    return " | ".join(check.reason for check in report.checks)


def test_a_healthy_export_passes(bundle):
    report = verify(bundle)
    assert report.passed
    assert report.flips == ()
    assert report.samples == 12
    assert report.max_rel < 1e-6
    assert report.artifact_sha256 == Bundle(bundle).artifact("onnx-fp32").sha256
    assert report.weights_sha256 == Bundle(bundle).manifest.weights_sha256
    asked = {(check.check, check.batch) for check in report.checks}
    assert asked == {
        *(("answers", size) for size in (1, 2, 7, 8)),
        *(("alone", size) for size in (2, 7, 8)),
        *(("golden", 1), ("distinct", 1), ("permuted", 8), ("repeated", 8)),
        *(("images all 0", 1), ("images all 255", 1)),
    }
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) == report


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, {1}), (2, {1, 2}), (5, {1, 2, 5}), (7, {1, 2, 7}), (16, {1, 2, 7, 16})]
)
def test_the_grid_ends_at_the_largest_batch(bundle, most, sizes):
    report = verify(bundle, VerifyOptions(max_batch=most))
    assert report.passed
    assert {check.batch for check in report.checks} == sizes


def test_one_golden_sample_is_cycled(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    root = small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx(), samples=1)
    report = verify(root)
    assert report.passed
    assert max(check.batch for check in report.checks) == 8


def test_progress_reaches_its_total(bundle):
    told = []
    verify(bundle, progress=lambda what, done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == len(told)


@pytest.mark.parametrize("fault", planted_faults.WEIGHTS)
def test_changed_weights_fail_at_every_size(with_arrays, bundle, fault):
    report = with_arrays(fault)
    assert not report.passed
    assert {("answers", size) for size in (1, 2, 7, 8)} <= failed(report)
    assert ("golden", 1) not in failed(report)
    assert "logits" in reasons(report)
    assert "golden sample" in reasons(report)
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) == report


def test_the_reason_names_output_element_sample_and_size(with_arrays):
    report = with_arrays(planted_faults.one_bias)
    check = next(c for c in report.checks if (c.check, c.batch) == ("answers", 7))
    sample, element = check.worst_index
    assert element == 2
    assert f"logits[2] for golden sample {sample} at batch 7" in check.reason
    assert f"{check.max_abs:.3g} off, {check.ratio:.3g}x the rounding of the orig" in check.reason
    assert check.ratio == pytest.approx(check.error / check.own)
    assert check.max_abs == pytest.approx(1e-3, rel=1e-2)


def test_one_flipped_bit_in_one_weight_fails(with_arrays):
    report = with_arrays(planted_faults.one_bit)
    assert ("answers", 1) in failed(report)


def test_swapped_labels_are_listed_with_their_margin(with_arrays):
    flips = with_arrays(planted_faults.labels_swapped).flips
    swapped = {(flip.reference, flip.candidate) for flip in flips}
    assert swapped == {("cat", "dog"), ("dog", "cat")}
    assert all(flip.margin > 0 and not flip.forgiven for flip in flips)


def test_a_wide_tolerance_does_not_forgive_flips_of_a_wider_margin(with_fault):
    """Elements 0.6 e off move a margin of 1.1 e: within tolerance, and yet another label."""

    def fault(real, inputs):
        logits = real(inputs)["logits"]
        order = np.argsort(logits, axis=1)
        best, second = order[:, -1:], order[:, -2:-1]
        gap = np.take_along_axis(logits, best, 1) - np.take_along_axis(logits, second, 1)
        answer = logits.copy()
        np.put_along_axis(answer, best, np.take_along_axis(logits, best, 1) - 0.55 * gap, 1)
        np.put_along_axis(answer, second, np.take_along_axis(logits, second, 1) + 0.55 * gap, 1)
        return {"logits": answer}

    forgiven = with_fault(fault, tolerance=2.0)  # wider than any margin
    assert forgiven.passed
    assert len(forgiven.flips) == 12
    assert all(flip.forgiven for flip in forgiven.flips)
    widest = max(flip.margin for flip in forgiven.flips)
    scale = forgiven.checks[0].scale
    strict = with_fault(fault, tolerance=0.8 * widest / scale)
    assert not strict.passed
    assert strict.max_abs < strict.tolerance * scale  # no element is out of tolerance
    worst = max(strict.flips, key=lambda flip: flip.margin)
    assert not worst.forgiven
    assert f"golden sample {worst.sample} becomes {worst.candidate!r}" in reasons(strict)


def test_train_mode_batch_norm_fails(with_file, tmp_path):
    small_bundles.export(planted_faults.TrainModeNorm().eval(), tmp_path / "train.onnx")
    report = with_file(tmp_path / "train.onnx")
    assert {("answers", 1), ("answers", 8), ("alone", 2), ("alone", 7)} <= failed(report)
    assert "answers otherwise in a batch than alone" in reasons(report)


def test_train_mode_in_original_and_export_alike_fails(tmp_path, monkeypatch):
    """Reference and candidate agree at every size; a row still depends on its neighbours."""
    small_bundles.plug_task(monkeypatch, planted_faults.TrainModeNorm)
    network = planted_faults.TrainModeNorm().eval()
    small_bundles.export(network, tmp_path / "train.onnx")
    root = small_bundles.make(tmp_path / "b", tmp_path / "train.onnx", network=network)
    report = verify(root)
    assert failed(report) == {("original", 1)}
    assert "the original itself answers a row otherwise in a batch than alone" in reasons(report)


def test_a_frozen_batch_axis_fails_with_that_reason(with_file, tmp_path):
    small_bundles.export(small_bundles.Tiny().eval(), tmp_path / "two.onnx", batch=2)
    report = with_file(tmp_path / "two.onnx")
    assert failed(report) == {
        *(("answers", 1), ("answers", 7), ("answers", 8), ("repeated", 8)),
        *(("images all 0", 1), ("images all 255", 1)),
    }
    assert "no usable answer at batch 7" in reasons(report)
    assert "Got: 7 Expected: 2" in reasons(report)


def test_a_file_with_other_outputs_fails_and_is_reported(with_file, tmp_path, bundle):
    class Five(small_bundles.Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return torch.cat([logits, logits[:, :1]], dim=1)

    small_bundles.export(Five().eval(), tmp_path / "five.onnx")
    report = with_file(tmp_path / "five.onnx")
    assert not report.passed
    assert "logits float32 [batch, 5]" in reasons(report)
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) == report


@pytest.mark.parametrize(
    ("fault", "expected", "told"),
    [
        (
            planted_faults.shuffled,
            {("answers", 2), ("alone", 8), ("permuted", 8)},
            "in a batch than alone",
        ),
        (planted_faults.leaking, {("answers", 1), ("alone", 7)}, "in a batch than alone"),
        (
            planted_faults.nan_on_one,
            {("answers", 1), ("answers", 7)},
            "logits[2] for golden sample 3",
        ),
        (
            planted_faults.random,
            {("repeated", 8), ("permuted", 8), ("alone", 2)},
            "the second time",
        ),
        (
            planted_faults.constant,
            {("answers", 1), ("distinct", 1)},
            "same for all 12 golden samples",
        ),
        (
            planted_faults.first_row_only,
            {("answers", 2), ("answers", 7), ("answers", 8)},
            "with 7 rows",
        ),
        (planted_faults.missing, {("answers", 1), ("answers", 8)}, "scores"),
        (planted_faults.one_more, {("answers", 1), ("answers", 8)}, "debug"),
        (planted_faults.halved, {("answers", 1), ("answers", 8)}, "float16 in place of float32"),
        (
            planted_faults.column,
            {("answers", 1), ("answers", 2)},
            "shape [12, 4, 1] in place of [12, 4]",
        ),
        (planted_faults.not_above_two, {("answers", 7), ("answers", 8)}, "batch size exceeds 2"),
    ],
)
def test_faults_of_an_answer_fail_with_their_reason(with_fault, fault, expected, told):
    report = with_fault(fault)
    assert not report.passed
    assert expected <= failed(report)
    assert told in reasons(report)
    assert json.loads(json.dumps(report.max_abs)) == report.max_abs


def test_shuffled_rows_are_right_when_alone(with_fault):
    assert ("answers", 1) not in failed(with_fault(planted_faults.shuffled))


def test_stale_golden_outputs_are_named(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    older = small_bundles.answers(small_bundles.Tiny(seed=1).eval(), small_bundles.images(12))
    root = small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx(), golden_outputs=older)
    report = verify(root)
    assert failed(report) == {("golden", 1)}
    assert "stale" in reasons(report)


def test_golden_outputs_of_another_shape_are_named(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    root = small_bundles.make(
        tmp_path / "b", small_bundles.healthy_onnx(), golden_outputs=np.zeros((12, 3), "f4")
    )
    report = verify(root)
    assert failed(report) == {("golden", 1)}
    assert "shape [12, 3] in place of [12, 4]" in reasons(report)


def test_only_the_original_against_the_file_opens_the_gate(bundle):
    """Whatever else is compared is kept under another name, however well it passes."""
    for reference, candidate, kind in (
        ("ort@cpu", "ort@cpu", "parity-onnx-fp32-ort"),
        ("golden@bundle", "ort@cpu", "parity-onnx-fp32-ort"),
        ("eager@cpu", "eager@cpu", "parity-onnx-fp32-eager"),
        ("eager@cpu", "golden@bundle", "parity-onnx-fp32-golden"),
    ):
        report = verify(bundle, VerifyOptions(reference=reference, candidate=candidate))
        assert report.passed
        assert Bundle(bundle).report(kind, ParityReport) == report
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) is None


def test_a_candidate_that_will_not_open_for_this_model_is_a_failed_check(bundle, monkeypatch):
    def refuse(home, where, chosen):
        raise SpecError("the inputs images", got="pixels", fix="serve this bundle's model")

    small_bundles.plug_runtime(monkeypatch, "other", refuse)
    report = verify(bundle, VerifyOptions(candidate="other@here"))
    assert not report.passed
    assert "got pixels" in reasons(report)
    assert Bundle(bundle).report("parity-onnx-fp32-other", ParityReport) == report
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) is None


def test_a_reference_that_does_not_answer_is_an_error(bundle, monkeypatch):
    class Down:
        name, facts, close = "down@here", dict, staticmethod(lambda: None)

        def __call__(self, inputs):
            raise ServerError("an answer", got="connection refused", fix="start it")

    small_bundles.plug_runtime(monkeypatch, "down", lambda *_: Down())
    with pytest.raises(ServerError, match="connection refused"):
        verify(bundle, VerifyOptions(reference="down@here"))


def test_another_file_in_its_place_meanwhile_is_an_error(bundle, with_fault, tmp_path):
    edited = small_bundles.edit(
        small_bundles.healthy_onnx(), tmp_path / "e.onnx", planted_faults.one_bias
    )
    done = []

    def swap(real, inputs):
        if not done:
            done.append(small_bundles.put_artifact(bundle, edited))
        return real(inputs)

    with pytest.raises(BundleError, match="as it was when the verification began"):
        with_fault(swap)
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) is None


def test_changed_weights_of_the_bundle_are_refused_even_where_nothing_reads_them(bundle):
    (bundle / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        verify(bundle, VerifyOptions(reference="golden@bundle"))


def test_both_runtimes_are_closed(bundle, monkeypatch):
    closed = []
    monkeypatch.setattr(ort.OrtPool, "close", lambda self: closed.append(self.name))
    verify(bundle)
    assert closed == ["ort@cpu"]


def test_unknown_runtimes_are_refused(bundle):
    with pytest.raises(OptionError, match="no runtime called 'tvm'"):
        verify(bundle, VerifyOptions(candidate="tvm@cpu"))


def test_more_instances_answer_alike(bundle):
    assert verify(bundle, runtime=RuntimeOptions(threads=2, instances=2)).passed


def test_stored_answers_against_the_file_need_no_torch(bundle):
    code = (
        "import sys\n"
        "from tlexport.options import VerifyOptions\n"
        "from tlexport.stages.verify import verify\n"
        "report = verify(sys.argv[1], VerifyOptions(reference='golden@bundle'))\n"
        "assert report.passed\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle)], check=True, timeout=60)


def test_a_real_server_is_verified_without_torch(bundle, tmp_path):
    """The stored answers against Triton: report under its own name, nothing of torch loaded."""
    assert verify(bundle).passed
    package(bundle, tmp_path / "repository", PackageOptions(instances=1, threads=1))
    code = (
        "import sys\n"
        "from tlexport.options import VerifyOptions\n"
        "from tlexport.stages.verify import verify\n"
        "options = VerifyOptions(reference='golden@bundle', candidate=sys.argv[2])\n"
        "report = verify(sys.argv[1], options)\n"
        "assert report.passed, report\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    with serve(tmp_path / "repository") as serving:
        candidate = f"triton@{serving.report.grpc}"
        subprocess.run(
            [sys.executable, "-c", code, str(bundle), candidate], check=True, timeout=120
        )
        too_large = verify(bundle, VerifyOptions(candidate=candidate, max_batch=9))
    assert failed(too_large) == {("answers", 9), ("repeated", 9)}
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport).passed
    assert Bundle(bundle).report("parity-onnx-fp32-triton", ParityReport) == too_large


def test_the_server_of_another_model_is_named(bundle, tmp_path):
    """Right in this process and wrong on the server: another version is served there."""
    assert verify(bundle).passed
    package(bundle, tmp_path / "repository", PackageOptions(instances=1, threads=1))
    edited = small_bundles.edit(
        small_bundles.healthy_onnx(), tmp_path / "edited.onnx", planted_faults.perturbed
    )
    network = small_bundles.Tiny(seed=3)
    other = small_bundles.make(tmp_path / "other", network=network)
    small_bundles.export(network.eval(), tmp_path / "other.onnx")
    small_bundles.put_artifact(other, tmp_path / "other.onnx")
    small_bundles.put_artifact(bundle, edited)
    with serve(tmp_path / "repository") as serving:
        options = VerifyOptions(candidate=f"triton@{serving.report.grpc}")
        wrong_server = verify(other, options)
        right_server = verify(bundle, options)
    assert not wrong_server.passed
    assert "served-model" in [cause.name for cause in wrong_server.causes]
    assert "weights" in [cause.name for cause in right_server.causes]


def test_a_server_that_tells_other_labels_is_named(bundle, tmp_path):
    """The numbers are right; what clients are told they mean is not."""
    assert verify(bundle).passed
    package(bundle, tmp_path / "repository", PackageOptions(instances=1, threads=1))
    described = tmp_path / "repository" / "tiny" / "config.pbtxt"
    text = described.read_text()
    swapped = text.replace("cat", "@").replace("dog", "cat").replace("@", "dog")
    assert swapped != text
    described.write_text(swapped)
    with serve(tmp_path / "repository") as serving:
        report = verify(bundle, VerifyOptions(candidate=f"triton@{serving.report.grpc}"))
    assert failed(report) == {("served labels", 1)}
    assert report.causes[0].name == "postprocessing"
    assert "the server tells the labels dog, cat, eel, fox" in report.causes[0].told


def test_where_it_passes_the_graph_is_walked_on_demand(bundle):
    report = verify(bundle, VerifyOptions(explain=True))
    assert report.passed
    assert report.walk.first is None
    assert report.walk.overflow == ()
    assert report.walk.compared > 5
    assert max(step.ratio for step in report.walk.steps) < 8
    assert any(step.module == "norm (BatchNorm2d)" for step in report.walk.steps)
    page = (Bundle(bundle).root / "reports" / "parity-onnx-fp32.html").read_text()
    assert page.count("<circle") == len(report.walk.steps)
    assert "<script" not in page


def test_the_first_node_at_fault_is_found(with_arrays):
    report = with_arrays(planted_faults.perturbed)
    assert report.walk.first.module.startswith("second")
    assert report.walk.first.operator == "Conv"
    assert report.walk.first.ratio > 8


@pytest.mark.parametrize(
    ("options", "criterion", "passed"),
    [
        ({"tolerance": 1e-2}, "share of scale", True),
        ({"tolerance": 1e-6}, "share of scale", False),
        ({"atol": 2e-3}, "atol and rtol", True),
        ({"atol": 1e-4, "rtol": 1e-4}, "atol and rtol", False),
        ({"factor": 1e5}, "noise floor", True),
    ],
)
def test_other_criteria_for_those_who_must(with_fault, options, criterion, passed):
    def off(real, inputs):
        return {"logits": real(inputs)["logits"] + np.float32(1e-3)}

    report = with_fault(off, **options)
    assert report.criterion == criterion
    assert report.passed is passed


def test_two_criteria_at_once_are_refused():
    with pytest.raises(OptionError, match="one way to allow a difference"):
        VerifyOptions(tolerance=1e-3, atol=1e-3)


class Shaky(small_bundles.Tiny):
    """Answers infinity to black images, as a network that takes a logarithm does."""

    def forward(self, images):
        return super().forward(images) + torch.log(images.float().mean((1, 2, 3)))[:, None]


def test_where_the_original_itself_is_not_finite_the_export_may_be(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch, Shaky)
    network = Shaky().eval()
    small_bundles.export(network, tmp_path / "log.onnx")
    root = small_bundles.make(tmp_path / "b", tmp_path / "log.onnx", network=network)
    report = verify(root)
    assert report.passed
    assert "the original itself answers 'logits' with NaN or infinity" in report.notes[0]


def test_the_change_in_accuracy_is_told_and_judged(tmp_path, monkeypatch):
    data = digits.write(tmp_path / "digits", per_class=5)
    bundle, small = tmp_path / "small.bundle", "timm/test_resnet"
    train(data, bundle, TrainOptions(backbone=small, weights="random", trials=1, golden=8))
    export(bundle)
    report = verify(bundle, VerifyOptions(data=str(data)))
    assert report.passed
    assert report.accuracy.examples == 50
    assert report.accuracy.candidate == report.accuracy.reference
    assert report.accuracy.p_value == 1
    assert report.decided.flips == 0
    assert report.decided.top5 == 1

    class Forgetful:
        """Right about golden samples; of others it tells the neighbour's label."""

        def __init__(self, home, where, chosen):
            self._real = ort.open(home, "cpu", chosen)
            self.name, self.spec = f"forgetful@{where}", home.spec
            self.facts, self.counters = self._real.facts, self._real.counters
            self.close = self._real.close
            self._known = {row.tobytes() for row in home.golden().inputs["images"]}

        def __call__(self, inputs):
            logits = self._real(inputs)["logits"]
            for row, image in enumerate(inputs["images"]):
                if image.tobytes() not in self._known and len(inputs["images"]) > 1:
                    logits[row] = np.roll(logits[row], 1)
            return {"logits": logits}

    small_bundles.plug_runtime(monkeypatch, "forgetful", Forgetful)
    worse = verify(bundle, VerifyOptions(candidate="forgetful@here", data=str(data)))
    assert not worse.passed
    assert worse.accuracy.difference.high < -0.3
    assert worse.accuracy.p_value < 1e-3
