"""Speech classifiers: raw samples in the graph, clips drawn."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tlexport.backbones import _speech
from tlexport.bundle import Raw
from tlexport.importers import _hub_folder
from tlexport.spec import TensorSpec
from tlexport.tasks._pooling import MeanPool

LONGEST_S = 3.0
"""Seconds of a drawn clip at most."""


class ClipClassifier(torch.nn.Module):
    """A fine-tuned speech classifier on raw samples: the library's own layers and pooling.

    wav2vec2's kind projects, then takes the mean of the clip's frames, Whisper that of its whole
    window; AST classifies its summary.
    """

    def __init__(self, model: Any, extractor: dict[str, Any]) -> None:
        super().__init__()
        base = getattr(model, "encoder", None) or model.base_model
        self.speech = _speech.wrap(base, extractor, None, trim_db=None)
        self.projector = getattr(model, "projector", None) or torch.nn.Identity()
        self.pool = MeanPool()
        self.classifier = model.classifier

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """float32 [batch, samples], bool [batch, samples] -> logits: float32 [batch, classes]."""
        hidden, valid = self.speech(samples, attention_mask)
        pooled = self.pool(self.projector(hidden), valid)
        return cast(torch.Tensor, self.classifier(pooled))


def extractor_of(model: Any, folder: Path) -> dict[str, Any] | None:
    """preprocessor_config.json where the model is a speech classifier that we can wrap."""
    path = folder / "preprocessor_config.json"
    kind = model.config.model_type
    weighted = getattr(model.config, "use_weighted_layer_sum", False)
    if kind not in _speech.KINDS or weighted or not path.is_file():
        return None
    return _hub_folder.read(path)


def inputs_of(numbers: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """samples: float32 [batch, samples], and attention_mask, bool, where the network wants it."""
    shape = ("batch", "samples")
    samples = TensorSpec(name="samples", dtype="float32", shape=shape, legal=(-1, 1))
    mask = TensorSpec(name="attention_mask", dtype="bool", shape=shape)
    return (samples, mask) if numbers["mask"] else (samples,)


def drawn(numbers: dict[str, Any], count: int, rng: np.random.Generator) -> list[Raw]:
    """WAV files of tones that begin and end, in noise; of any length, all different."""
    rate = numbers["rate"]
    found = []
    for number in range(count):
        size = int(rng.integers(rate // 10, int(LONGEST_S * rate)))
        time = np.arange(size) / rate
        pitch = rng.uniform(100, 3000) * (1 + rng.uniform(-0.5, 0.5) * time)
        envelope = np.sin(np.pi * np.arange(size) / size)
        clip = envelope * np.sin(2 * np.pi * pitch * time) * rng.uniform(0.1, 0.9)
        clip = clip + 0.01 * rng.standard_normal(size)
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((np.clip(clip, -1, 1) * 32767).astype("<i2").tobytes())
        found.append(Raw(name=f"drawn-{number}.wav", content=content.getvalue()))
    return found
