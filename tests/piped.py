"""Tiny trained bundles of photos, texts and sounds, proven and ready to be packaged."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import photos
import soundfile
import tiny_audio
import tiny_text
from PIL import Image

from tlexport.bundle import Bundle
from tlexport.options import TrainOptions, VerifyOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify

BATCH = 4
"""The largest batch that is proven, and so served."""
CLASSES = ("bird", "fruit", "vehicle")


def write_photos(root: Path, per_class: int = 8) -> Path:
    """Real photos of three classes, half of them JPEG and half PNG."""
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number, path in enumerate(sorted((photos.fetch() / label).iterdir())[:per_class]):
            image = Image.open(path).convert("RGBA")
            image.thumbnail((320, 240))
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


@functools.cache
def bundle(kind: str, seed: int = 0) -> Path:
    """A proven bundle of photos, texts or sounds, made once; copy it to change it."""
    root = Path(tempfile.mkdtemp(prefix="tlexport-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    if kind == "photos":
        data, options = write_photos(root / "photos"), {"backbone": "timm/test_vit"}
        options |= {"weights": "random"}
    elif kind == "texts":
        data, net = write_texts(root / "texts.csv"), tiny_text.write(root / "bert", "bert")
        options = {"task": "text-classification", "backbone": f"transformers/{net}"}
    else:
        data, net = write_clips(root / "clips"), tiny_audio.write(root / "wav2vec2", "wav2vec2")
        options = {"task": "audio-classification", "backbone": f"transformers/{net}"}
        options |= {"max_seconds": 1}
    place = root / f"{kind}.bundle"
    train(data, place, TrainOptions(**options, trials=1, epochs=2, golden=6, seed=seed))
    export(place)
    assert verify(place, VerifyOptions(max_batch=BATCH)).passed
    return place


def files(kind: str) -> list[Path]:
    """The golden files of a bundle, as they came."""
    home = Bundle(bundle(kind))
    return [home.raw(sample) for sample in home.manifest.golden]


def column(*items: bytes) -> np.ndarray:
    """Items as a pipeline takes them: object [items, 1]."""
    found = np.empty((len(items), 1), dtype=np.object_)
    found[:, 0] = items
    return found


def edit(path: Path, before: str, after: str) -> None:
    """Change a file of a repository; it must hold `before`."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
