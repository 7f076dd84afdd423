"""Ten spoken words: Whisper's encoder with its real weights, from folders of clips to a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import speech

from tlexport.options import (
    EvaluateOptions,
    PackageOptions,
    PredictOptions,
    RuntimeOptions,
    TrainOptions,
    VerifyOptions,
)
from tlexport.stages.evaluate import evaluate
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.predict import predict
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

TAUGHT = speech.ESPEAK[:4]
UNHEARD = speech.ESPEAK[4:20]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """taught/, unheard/ (the same synthesiser's other voices), flite/ (another synthesiser)."""
    root = tmp_path_factory.mktemp("words")
    for name, voices in (("taught", TAUGHT), ("unheard", UNHEARD), ("flite", speech.FLITE)):
        speech.words(root / name, voices)
    return root


def options(**more) -> TrainOptions:
    return TrainOptions(
        task="audio-classification", backbone=f"transformers/{speech.whisper()}", **more
    )


@pytest.fixture(scope="module")
def bundle(words: Path, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("bundles") / "words.bundle"
    train(words / "taught", place, options(golden=8))
    return place


def test_voices_never_heard_are_understood_and_random_weights_are_not(bundle, words, tmp_path):
    heard = {name: evaluate(bundle, words / name).accuracy.value for name in ("unheard", "flite")}
    assert heard["unheard"] >= 0.93
    assert heard["flite"] >= 0.88
    train(words / "taught", tmp_path / "random", options(weights="random"))
    for name, reached in heard.items():
        assert reached >= evaluate(tmp_path / "random", words / name).accuracy.value + 0.10


def test_what_is_served_answers_as_trained(bundle: Path, words: Path, tmp_path: Path):
    export(bundle)
    assert verify(bundle).passed
    package(bundle, tmp_path / "models", PackageOptions(name="words"))
    with serve(tmp_path / "models") as server:
        where, asked = f"triton@{server.report.grpc}", RuntimeOptions(model="words")
        assert verify(bundle, VerifyOptions(candidate=where), asked).passed
        report = evaluate(bundle, words / "flite", EvaluateOptions(runtime=where), asked)
        assert report.against.changed == 0
        clip = words / "unheard" / "stop" / f"{UNHEARD[0]}.wav"
        told = predict(where, [clip], PredictOptions(), asked)  # the server alone is enough
        assert told.predictions[0].labels[0] == "stop"
