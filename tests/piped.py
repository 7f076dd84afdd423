"""Tiny trained bundles of photos, texts and sounds, proven and ready to be packaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import photos
import soundfile
import tiny_audio
import tiny_text
from PIL import Image

from tlexport.options import TrainOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify

SHORT = {"trials": 1, "epochs": 2, "golden": 6}
CLASSES = ("bird", "fruit", "vehicle")


def write_photos(root: Path, per_class: int = 8) -> Path:
    """Real photos of three classes, half of them JPEG and half PNG."""
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number, path in enumerate(sorted((photos.fetch() / label).iterdir())[:per_class]):
            image = Image.open(path).convert("RGBA")
            image.thumbnail((200, 160))
            if number % 2:
                image.save(root / label / f"{number}.png")
            else:
                ground = Image.new("RGBA", image.size, "white")
                flat = Image.alpha_composite(ground, image).convert("RGB")
                flat.save(root / label / f"{number}.jpg", quality=92)
    return root


def write_texts(path: Path) -> Path:
    """A table of 30 texts of 3 to 17 words, two labels."""
    told = ["the cat sat " * (1 + n % 5) + f"on {n} mats" for n in range(30)]
    path.write_text("text,label\n" + "".join(f"{t},{'ab'[n % 2]}\n" for n, t in enumerate(told)))
    return path


def write_clips(root: Path) -> Path:
    """Low and high tones of 0.25 to 0.6 s in noise, 16 kHz WAV."""
    for label, pitch in (("low", 200), ("high", 900)):
        (root / label).mkdir(parents=True)
        for number in range(8):
            time = np.arange(4000 + 800 * number) / 16_000
            noise = np.random.default_rng(number).standard_normal(time.size)
            samples = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * noise
            soundfile.write(root / label / f"{number}.wav", samples, 16_000)
    return root


def image_bundle(root: Path) -> Path:
    """photos.bundle: 160 x 160 photos to three classes."""
    return _proven(write_photos(root / "photos"), root / "photos.bundle", backbone="timm/test_vit")


def text_bundle(root: Path) -> Path:
    """texts.bundle: two inputs, any number of tokens."""
    net = tiny_text.write(root / "bert", "bert")
    table = write_texts(root / "texts.csv")
    return _proven(table, root / "texts.bundle", "text-classification", f"transformers/{net}")


def sound_bundle(root: Path) -> Path:
    """sounds.bundle: clips of any length and their mask."""
    net = tiny_audio.write(root / "wav2vec2", "wav2vec2")
    clips = write_clips(root / "clips")
    return _proven(clips, root / "sounds.bundle", "audio-classification", f"transformers/{net}")


def _proven(
    data: Path, place: Path, task: str = "image-classification", backbone: str = ""
) -> Path:
    weights = {"weights": "random"} if backbone.startswith("timm/") else {}
    train(data, place, TrainOptions(task=task, backbone=backbone, **weights, **SHORT))
    export(place)
    assert verify(place).passed
    return place
