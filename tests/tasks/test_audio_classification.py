from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_audio
import torch
from tiny_audio import FAMILIES, RATE

from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.options import EvaluateOptions, TrainOptions, VerifyOptions
from tlexport.stages.evaluate import evaluate
from tlexport.stages.export import export
from tlexport.stages.predict import predict
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.tasks import audio_classification as task


def tone(pitch: float, seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(time.size)
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * noise


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Tones of 0.05 to 1.3 s in every format, at several rates, one channel or two."""
    root = tmp_path_factory.mktemp("clips")
    for label, pitch in (("low", 150), ("middle", 900), ("high", 3000)):
        (root / label).mkdir()
        for number in range(8):
            rate = (16_000, 8_000, 44_100)[number % 3]
            samples = tone(pitch, 0.05 + 0.18 * number, number, rate)
            if number % 2:
                samples = np.stack([samples, samples], axis=1)
            suffix = ("wav", "flac", "ogg", "mp3")[number % 4]
            soundfile.write(root / label / f"{number}.{suffix}", samples, rate)
    return root


def folder(place: Path, family: str) -> Path:
    return tiny_audio.write(place / family, family)


def options(backbone: Path, **more) -> TrainOptions:
    return TrainOptions(
        task="audio-classification", backbone=f"transformers/{backbone}", trials=2, **more
    )


@pytest.fixture(scope="module")
def tiny_wave(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("networks"), "wav2vec2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_whole_way(family: str, clips: Path, tmp_path: Path):
    place = tmp_path / "b"
    train(clips, place, options(folder(tmp_path, family), golden=4, max_seconds=1))
    export(place)
    report = verify(place, VerifyOptions(max_batch=3))
    assert report.passed
    names = {check.check for check in report.checks}
    assert {"shortest clip", "longest clip", "silence", "full scale"} <= names
    assert {"unpadded, alone", "padded more, alone"} <= names
    spec = Bundle(place).spec
    assert spec.inputs[0].name == "samples"
    assert spec.inputs[0].shape == ("batch", "samples")
    assert [tensor.dtype for tensor in spec.inputs[1:]] == ([] if family == "whisper" else ["bool"])
    scored = evaluate(place, clips, EvaluateOptions(runtime="ort@cpu"))
    assert scored.against.changed == 0
    (answer,) = predict(place, [clips / "low" / "3.mp3"]).predictions
    assert len(answer.labels) == 3


def test_features_do_not_depend_on_the_batch(clips: Path, tiny_wave: Path, tmp_path: Path):
    from tlexport.training import features

    examples = task.read(clips)
    learner = task.learner(options(tiny_wave), examples)
    found = []
    for batch in (1, 7):
        extraction = features.Extraction(
            task=task, learner=learner, cache=tmp_path / str(batch), batch=batch
        )
        found.append(features.compute(examples.train, extraction, lambda *_: None).values)
    assert np.abs(found[0] - found[1]).max() <= 1e-5 * np.abs(found[0]).max()


def test_a_fixed_window_is_as_long_as_the_longest_clip_and_some_silence(clips, tmp_path):
    place = folder(tmp_path, "whisper")
    examples = task.read(clips)
    learner = task.learner(options(place), examples)
    assert learner.preprocess["longest"] == 4 * RATE  # 1.31 s, in whole seconds, and two
    assert learner.notes == ()
    learner = task.learner(options(place, max_seconds=1), examples)
    assert learner.preprocess["longest"] == RATE
    assert learner.notes == ("6 clips are longer than 1 s; what follows is cut off",)
    with pytest.raises(OptionError, match="--max-seconds up to the 30 that"):
        task.learner(options(place, max_seconds=31), examples)


def test_broken_clips_are_all_named_and_may_be_left_out(tiny_wave: Path, tmp_path: Path):
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(6):
            samples = tone(200 if label == "a" else 900, 0.3, number)
            soundfile.write(tmp_path / "d" / label / f"{number}.wav", samples, RATE)
    whole = (tmp_path / "d" / "a" / "0.wav").read_bytes()
    (tmp_path / "d" / "a" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d" / "b" / "text.wav").write_text("no audio at all")
    (tmp_path / "d" / "b" / "empty.flac").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        train(tmp_path / "d", tmp_path / "b", options(tiny_wave))
    for told in ("3 broken of 15", "cut.wav: cut short", "text.wav: no audio", "empty.flac: an"):
        assert told in caught.value.got
    report = train(tmp_path / "d", tmp_path / "b", options(tiny_wave, skip_broken=True))
    assert len(report.skipped) == 3


def test_silence_clipping_and_a_click_have_finite_features(tiny_wave: Path, tmp_path: Path):
    odd = {
        "silence": np.zeros(RATE),
        "clipped": np.clip(20 * tone(300, 1, 0), -1, 1),
        "click": np.ones(8),
        "constant": np.full(RATE, 0.5),
    }
    for name, samples in odd.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    for place in (tiny_wave, folder(tmp_path, "whisper"), folder(tmp_path, "ast")):
        learner = task.learner(options(place), task.Examples(labels=(), train=(), val=(), notes=()))
        loaded = task.load([tmp_path / f"{name}.wav" for name in odd], learner.preprocess)
        assert not loaded.broken
        with torch.inference_mode():
            found = learner.extractor(*map(torch.from_numpy, loaded.inputs.values()))
        assert torch.isfinite(found).all()


def test_a_text_backbone_is_refused_for_clips(tiny_bert: Path, clips: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="a backbone for audio"):
        train(clips, tmp_path / "b", options(tiny_bert))
    with pytest.raises(OptionError, match="--pooling of mean, segments for clips"):
        train(clips, tmp_path / "b", options(folder(tmp_path, "ast"), pooling="cls"))
