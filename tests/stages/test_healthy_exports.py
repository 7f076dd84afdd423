"""Healthy exports, over modalities and precisions: none is refused, and all say how near."""

from __future__ import annotations

from pathlib import Path

import digits
import numpy as np
import pytest
import soundfile
import tiny_audio
import tiny_text

from tlexport.options import ExportOptions, RuntimeOptions, TrainOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.traffic import race

IMAGES = (
    "timm/test_resnet",
    "timm/test_vit",
    "timm/test_convnext",
    "timm/test_efficientnet",
)
TEXTS = ("bert", "gpt2", "llama")
CLIPS = ("wav2vec2", "ast", "whisper")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return digits.write(tmp_path_factory.mktemp("digits"), per_class=4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    table = tmp_path_factory.mktemp("texts") / "t.csv"
    told = ["the cat sat " * (1 + n % 5) + f"on {n} mats" for n in range(30)]
    table.write_text("text,label\n" + "".join(f"{t},{'ab'[n % 2]}\n" for n, t in enumerate(told)))
    return table


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for label, pitch in (("low", 200), ("high", 900)):
        (root / label).mkdir()
        for number in range(8):
            time = np.arange(4000 + 800 * number) / 16_000
            noise = np.random.default_rng(number).standard_normal(time.size)
            samples = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * noise
            soundfile.write(root / label / f"{number}.wav", samples, 16_000)
    return root


@pytest.fixture(scope="module", params=[*IMAGES, *TEXTS, *CLIPS])
def bundle(request, tmp_path_factory) -> Path:
    """A trained bundle of random weights."""
    folder, name = tmp_path_factory.mktemp("healthy"), request.param
    short = {"trials": 1, "epochs": 2, "golden": 6}
    if name in IMAGES:
        options = TrainOptions(backbone=name, weights="random", **short)
        train(request.getfixturevalue("images"), folder / "b", options)
    elif name in TEXTS:
        place = tiny_text.write(folder / "net", name)
        options = TrainOptions(
            task="text-classification", backbone=f"transformers/{place}", **short
        )
        train(request.getfixturevalue("texts"), folder / "b", options)
    else:
        place = tiny_audio.write(folder / "net", name)
        options = TrainOptions(
            task="audio-classification", backbone=f"transformers/{place}", **short
        )
        train(request.getfixturevalue("clips"), folder / "b", options)
    return folder / "b"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_healthy_export_passes(bundle: Path, precision: str, monkeypatch) -> None:
    monkeypatch.setattr(race, "ROUNDS", 3)  # how fast it is does not matter here
    monkeypatch.setattr(race, "ROUND_S", 0.01)
    made = export(bundle, ExportOptions(precision=precision, calibration="minmax"))
    report = verify(bundle, runtime=RuntimeOptions(artifact=made.artifact))
    assert report.passed, [c.reason for c in report.checks if not c.passed] + [*report.causes]
    assert report.causes == ()
    assert report.precision == precision
    assert report.criterion == "noise floor"
    assert report.ratio < 6
