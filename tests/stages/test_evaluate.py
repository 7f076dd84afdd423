"""Labelled examples, asked of any runtime, scored."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, MissingDependency, OptionError
from tlexport.options import EvaluateOptions
from tlexport.reports import EvaluateReport
from tlexport.stages.evaluate import evaluate


@pytest.fixture
def some(digits, tmp_path) -> Path:
    """Eight real scans of each of four of the ten digits."""
    root = tmp_path / "some"
    for label in ("0", "3", "6", "9"):
        (root / label).mkdir(parents=True)
        for path in sorted((digits / label).iterdir())[:8]:
            shutil.copyfile(path, root / label / path.name)
    return root


@pytest.mark.parametrize("runtime", ["eager@cpu", "ort@cpu"])
def test_real_scans_are_scored(digits_bundle, some, runtime):
    report = evaluate(digits_bundle, some, EvaluateOptions(runtime=runtime, batch=5))
    assert report.runtime == runtime
    assert report.examples == 32
    assert report.accuracy.value >= 0.8, "most of them were trained on"
    assert report.accuracy.low < report.accuracy.value <= report.accuracy.high
    assert [score.examples for score in report.classes] == [8, 0, 0, 8, 0, 0, 8, 0, 0, 8]
    assert [sum(row) for row in report.confusion] == [8, 0, 0, 8, 0, 0, 8, 0, 0, 8]
    diagonal = sum(report.confusion[n][n] for n in range(10))
    assert report.accuracy.value == pytest.approx(diagonal / 32)
    for number in (0, 3, 6, 9):
        assert report.classes[number].recall == pytest.approx(report.confusion[number][number] / 8)
    assert report.skipped == ()
    assert Bundle(digits_bundle).report("evaluate", EvaluateReport) == report


def test_both_runtimes_say_the_same_at_every_batch(digits_bundle, some):
    reports = [
        evaluate(digits_bundle, some, EvaluateOptions(runtime=runtime, batch=batch))
        for runtime, batch in (("eager@cpu", 8), ("ort@cpu", 8), ("ort@cpu", 1), ("ort@cpu", 100))
    ]
    assert len({report.confusion for report in reports}) == 1


def test_a_runtime_that_decides_otherwise_is_told_apart(digits_bundle, some, monkeypatch):
    """The first row of each batch of four is answered as the last label, whatever it shows."""
    from tlexport.runtimes import connect

    def opener(bundle, where, options):
        inner = connect("ort@cpu", bundle, options)

        def answer(inputs):
            logits = inner(inputs)["logits"].copy()
            logits[0] = 0
            logits[0, 9] = 50
            return {"logits": logits}

        odd = SimpleNamespace(name="odd@cpu", close=inner.close)
        return type("Odd", (), {"__call__": lambda self, inputs: answer(inputs), **vars(odd)})()

    small_bundles.plug_runtime(monkeypatch, "odd", opener)
    plain = evaluate(digits_bundle, some, EvaluateOptions(runtime="ort@cpu", batch=4))
    report = evaluate(digits_bundle, some, EvaluateOptions(runtime="odd@cpu", batch=4))
    assert plain.against.changed == 0
    told = report.against
    assert told.runtime == "eager@cpu"
    assert 5 <= told.changed <= 8
    assert told.wrong >= 5
    assert told.right + told.wrong <= told.changed
    assert told.difference.value == pytest.approx((told.right - told.wrong) / 32)
    assert told.difference.high < 0
    assert report.accuracy.value - told.accuracy == pytest.approx(told.difference.value)
    assert told.largest_change > 0.5
    none = evaluate(digits_bundle, some, EvaluateOptions(runtime="ort@cpu", against="none"))
    assert none.against is None


def test_of_train_and_val_only_val_is_asked(digits_bundle, some):
    root = some.parent / "parts"
    shutil.copytree(some, root / "val")
    shutil.copytree(some, root / "train")
    shutil.copytree(some / "3", root / "train" / "unknown-to-the-model")
    assert evaluate(digits_bundle, root).examples == 32


def test_a_folder_the_model_has_no_label_for_is_refused(digits_bundle, some):
    (some / "letter-a").mkdir()
    with pytest.raises(DataError, match="the model's labels") as caught:
        evaluate(digits_bundle, some)
    assert caught.value.got == "folders letter-a"


def test_broken_files_are_listed_or_skipped_and_named(digits_bundle, some):
    (some / "0" / "bad.png").write_text("x")
    (some / "9" / "worse.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 broken of 34") as caught:
        evaluate(digits_bundle, some)
    assert "bad.png: no image" in caught.value.got
    assert "worse.png" in caught.value.got
    assert "--skip-broken" in caught.value.fix
    report = evaluate(digits_bundle, some, EvaluateOptions(skip_broken=True, batch=3))
    assert report.examples == 32
    assert [Path(line.split(": ")[0]).name for line in report.skipped] == ["bad.png", "worse.png"]


def test_nothing_but_broken_files_is_refused(digits_bundle, tmp_path):
    (tmp_path / "d" / "1").mkdir(parents=True)
    (tmp_path / "d" / "1" / "a.png").write_text("x")
    with pytest.raises(DataError, match="examples that can be read"):
        evaluate(digits_bundle, tmp_path / "d", EvaluateOptions(skip_broken=True))


def test_no_files_are_refused(digits_bundle, tmp_path):
    (tmp_path / "d" / "1").mkdir(parents=True)
    with pytest.raises(DataError, match="images in"):
        evaluate(digits_bundle, tmp_path / "d")
    with pytest.raises(DataError, match="a folder"):
        evaluate(digits_bundle, tmp_path / "none")


@pytest.mark.parametrize(
    ("runtime", "kind", "message"),
    [
        ("tvm@cpu", OptionError, "a runtime of: "),
        ("ort", OptionError, "NAME@WHERE"),
        ("@cpu", OptionError, "NAME@WHERE"),
        ("eager@tpu", OptionError, "eager@cpu, eager@cuda:N or eager@cpu-float64"),
        ("eager@cuda:9", (MissingDependency, OptionError), "GPU|device"),
    ],
)
def test_a_runtime_that_is_not_there_is_told(digits_bundle, some, runtime, kind, message):
    with pytest.raises(kind, match=message):
        evaluate(digits_bundle, some, EvaluateOptions(runtime=runtime))


def test_no_bundle_is_refused(some):
    with pytest.raises(BundleError, match=r"bundle\.json"):
        evaluate(some, some)


def test_progress_ends_at_all(digits_bundle, some):
    told = []
    evaluate(digits_bundle, some, EvaluateOptions(batch=10), progress=lambda *a: told.append(a))
    assert [done for _, done, _ in told] == [10, 20, 30, 32]
    assert told[-1] == ("evaluate", 32, 32)
