from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.options import ExportOptions, TrainOptions, VerifyOptions
from tlexport.stages.evaluate import evaluate
from tlexport.stages.export import export
from tlexport.stages.predict import predict
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.tasks import _sequences
from tlexport.tasks import text_classification as task

TEXTS = {
    "weather": "rained and rained on a bad day {n}",
    "animals": "the cat sat while the dog slept {n}",
    "numbers": "signs happen ! ? . , such as {n} {n} {n}",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("texts") / "texts.csv"
    with place.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        for number in range(24):
            for label, text in TEXTS.items():
                rows.writerow([text.format(n=number) + " so" * (number % 9), label])
        for odd in ("", "\0", "\U0001f600" * 30, "שלום", "the cat " * 12_500):
            rows.writerow([odd, "animals"])
    return place


def options(backbone: Path, **more) -> TrainOptions:
    return TrainOptions(
        task="text-classification", backbone=f"transformers/{backbone}", trials=2, **more
    )


@pytest.fixture(scope="module")
def bundle(table: Path, tiny_bert: Path, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("bundles") / "texts.bundle"
    report = train(table, place, options(tiny_bert, golden=12))
    assert report.accuracy.value > 0.8
    export(place)
    return place


def test_the_bundle_stands_alone(bundle: Path):
    found = Bundle(bundle)
    assert set(found.files()) == {"tokenizer.json"}
    assert [tensor.name for tensor in found.spec.inputs] == ["input_ids", "attention_mask"]
    assert all(tensor.shape == ("batch", "sequence") for tensor in found.spec.inputs)
    raw = [found.raw(sample) for sample in found.golden().samples]
    again = task.load(raw, found.spec.preprocess, found.files())
    for name, array in found.golden().inputs.items():
        assert np.array_equal(again.inputs[name], array)


def test_the_export_answers_alike_at_every_length_and_padding(bundle: Path):
    report = verify(bundle)
    assert report.passed
    names = {check.check for check in report.checks}
    assert {"length 1", "length 2", "length 16", "length 64", "unpadded", "padded left"} <= names
    assert {"padded right", "nearly all padding", "padded left, alone"} <= names


def test_a_network_that_padding_changes_does_not_pass(bundle: Path, monkeypatch):
    """The mask forgotten in the pooling, in both runtimes: equal, and wrong."""

    class Forgetful(_sequences.Pool):
        def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return hidden.mean(1)

    monkeypatch.setattr(_sequences, "Pool", Forgetful)
    export(bundle, ExportOptions(force=True))
    report = verify(bundle, VerifyOptions(max_batch=2))
    failed = {check.check for check in report.checks if not check.passed}
    assert {"padded right, alone", "nearly all padding, alone"} <= failed
    assert not any(name.startswith("length") for name in failed)
    told = [cause.name for cause in report.causes]
    assert told == ["stale-golden", "padding"], "nothing else is to blame"
    monkeypatch.undo()
    export(bundle, ExportOptions(force=True))


def test_small_batches_ask_small_probes(bundle: Path):
    found = Bundle(bundle)
    for most in (1, 2, 8):
        for probe in task.probes(found.spec, found.golden().inputs, most):
            found.spec.check(probe.inputs)
            assert len(probe.inputs["input_ids"]) <= max(most, 1)
    assert verify(bundle, VerifyOptions(max_batch=1)).passed


def test_any_runtime_is_evaluated_and_compared(bundle: Path, table: Path):
    from tlexport.options import EvaluateOptions

    report = evaluate(bundle, table, EvaluateOptions(runtime="ort@cpu"))
    assert report.examples == 77
    assert report.against is not None
    assert report.against.changed == 0
    assert report.against.largest_change < 1e-4
    assert report.top5 is None
    assert evaluate(bundle, table).against is None


def test_files_are_labelled_and_a_server_alone_is_refused_kindly(bundle: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("the cat sat while the dog slept")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    good, bad = predict(bundle, [tmp_path / "a.txt", tmp_path / "b.txt"]).predictions
    assert good.labels[0] == "animals"
    assert "not UTF-8" in bad.error
    with pytest.raises(BundleError, match="which splits texts into tokens") as caught:
        task.load([tmp_path / "a.txt"], Bundle(bundle).spec.preprocess, {})
    assert "tlexport predict BUNDLE --runtime triton@HOST:PORT" in caught.value.fix


def test_an_edited_tokenizer_is_noticed(bundle: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "b")
    content = (copy / "preprocess" / "tokenizer.json").read_bytes()
    (copy / "preprocess" / "tokenizer.json").write_bytes(content + b" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json with sha256"):
        predict(copy, [copy / "golden" / "raw" / Bundle(copy).golden().samples[0].file])


@pytest.mark.parametrize("how", ["mean", "cls", "last"])
@pytest.mark.parametrize("left", [False, True])
def test_pooling_takes_real_tokens_alone(how: str, left: bool):
    hidden = torch.randn(3, 6, 4)
    mask = torch.zeros(3, 6, dtype=torch.int64)
    want = []
    for row, length in enumerate((1, 4, 6)):
        where = slice(6 - length, None) if left else slice(length)
        mask[row, where] = 1
        real = hidden[row, where]
        want.append({"mean": real.mean(0), "cls": real[0], "last": real[-1]}[how])
    hidden[mask == 0] = float("nan")
    assert torch.allclose(_sequences.Pool(how)(hidden, mask), torch.stack(want), atol=1e-6)


def test_what_is_neither_table_nor_folder_is_told(tmp_path: Path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    for name, got in (("t.xlsx", "a file of another kind"), ("none.csv", "nothing there")):
        with pytest.raises(DataError, match=r"a table of \.csv") as caught:
            task.read(tmp_path / name)
        assert caught.value.got == got


def test_a_folder_of_text_files_per_class(tiny_bert: Path, tmp_path: Path):
    for label, text in TEXTS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "data" / label / f"{number}.txt").write_text(text.format(n=number))
    report = train(tmp_path / "data", tmp_path / "b", options(tiny_bert))
    assert report.labels == ("animals", "numbers", "weather")
    assert verify_exported(tmp_path / "b")


def verify_exported(bundle: Path) -> bool:
    export(bundle)
    return verify(bundle).passed


def test_a_broken_row_is_named_and_may_be_left_out(tiny_bert: Path, tmp_path: Path):
    place = tmp_path / "t.jsonl"
    rows = [f'{{"text": "cat {n}", "label": "{"ab"[n % 2]}"}}' for n in range(20)]
    rows[7] = '{"text": null, "label": "b"}'
    place.write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"t\.jsonl row 8: cannot be read: the row has no text"):
        train(place, tmp_path / "b", options(tiny_bert))
    report = train(place, tmp_path / "b", options(tiny_bert, skip_broken=True))
    assert len(report.skipped) == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"max_length": 65}, "--max-length up to the 64 tokens"),
        ({"pooling": "segments"}, "--pooling of mean, cls, last"),
    ],
)
def test_what_the_backbone_cannot_do_is_refused(more, told, tiny_bert: Path, table, tmp_path):
    with pytest.raises(OptionError, match=told):
        train(table, tmp_path / "b", options(tiny_bert, **more))


def test_an_image_backbone_is_refused_for_texts_and_the_other_way(
    tiny_bert, table, digits, tmp_path
):
    with pytest.raises(OptionError, match="a backbone for text"):
        train(
            table,
            tmp_path / "b",
            TrainOptions(task="text-classification", backbone="timm/lcnet_035", weights="random"),
        )
    with pytest.raises(OptionError, match="a backbone for image") as caught:
        train(digits, tmp_path / "b", TrainOptions(backbone=f"transformers/{tiny_bert}"))
    assert "--task text-classification" in caught.value.fix


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_decoders_and_roberta_go_the_whole_way(family: str, table: Path, tmp_path: Path):
    import tiny_text

    folder = tiny_text.write(tmp_path / family, family)
    train(table, tmp_path / "b", options(folder, golden=6))
    recipe = Bundle(tmp_path / "b").manifest.network
    assert recipe["pooling"] == ("last" if family == "gpt2" else "mean")
    assert verify_exported(tmp_path / "b")


def test_features_do_not_depend_on_the_batch(table: Path, tiny_bert: Path):
    """Length buckets and batch size change what a text is padded with, not its features."""
    from tlexport.training import features

    chosen = options(tiny_bert)
    examples = task.read(table, chosen.data)
    learner = task.learner(chosen, examples)
    found = []
    for batch in (1, 16):
        extraction = features.Extraction(
            task=task, learner=learner, cache=table.parent / f"cache{batch}", batch=batch
        )
        found.append(features.compute(examples.train, extraction, lambda *_: None).values)
    assert np.abs(found[0] - found[1]).max() <= 1e-5 * np.abs(found[0]).max()
