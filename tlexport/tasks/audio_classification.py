"""Which of the classes a clip of sound belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tlexport.backbones import Pretrained
from tlexport.bundle import Bundle
from tlexport.errors import OptionError
from tlexport.options import DataOptions, TrainOptions
from tlexport.preprocess import audio
from tlexport.spec import ModelSpec, Probe, TensorSpec
from tlexport.tasks import (
    Examples,
    Learner,
    Loaded,
    Source,
    _augment_clips,
    _class_folders,
    _frozen,
    _linear,
)
from tlexport.tasks._classify import decide as decide
from tlexport.tasks._classify import scorer as scorer
from tlexport.tasks._linear import assemble as assemble
from tlexport.tasks._pooling import MeanPool, SegmentPool

NAME = "audio-classification"
RAW = audio
CANDIDATES = (
    "transformers/openai/whisper-tiny",
    "transformers/openai/whisper-base",
    "transformers/facebook/wav2vec2-base-960h",
    "transformers/MIT/ast-finetuned-audioset-10-10-0.4593",
)

MILLISECONDS = {"rate": 1000, "shortest": 0, "longest": 2**31}
"""Numbers with which `audio.length` tells a clip's milliseconds."""

BUDGET = 60_000
"""Milliseconds of sound in one batch, padding included: attention over 60 s takes 3 GB."""

POOLINGS = {"mean": MeanPool, "segments": SegmentPool}

SILENCE_S = 2
"""Seconds of silence behind the longest clip in a fixed window: the network learnt with some. Ten
words of half a second, four voices to learn from: 0.93 on another synthesiser's with it, 0.87
without."""

FARTHER = 777
"""Samples of padding added, so that no size is a round number."""


def _cost(path: Path) -> int:
    """Milliseconds of a clip by its header; 0 where it has none, and `load` says why."""
    try:
        return audio.length(path, MILLISECONDS)
    except (ValueError, OSError):
        return 0


CLIPS = _class_folders.Kind(suffixes=audio.suffixes(), name="clips", cost=_cost)


class ClipFeatures(torch.nn.Module):
    """Backbone and pooling: samples -> float32 [batch, width]."""

    def __init__(self, backbone: torch.nn.Module, pool: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """float32 [batch, samples], bool [batch, samples] -> float32 [batch, width]."""
        return cast(torch.Tensor, self.pool(*self.backbone(samples, attention_mask)))


def read(root: Path, choice: DataOptions | None = None, known: tuple[str, ...] = ()) -> Examples:
    """The labelled clips below `root`: a folder per class, or train/ and val/ above those.

    Raises:
        DataError: the layout is another, or a class is empty.
    """
    return _class_folders.read(root, CLIPS, known)


def load(
    sources: Sequence[Source], preprocess: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> Loaded:
    """Decode clips side by side: samples, float32 [batch, samples], and the mask where wanted."""
    return Loaded(*audio.arrays(sources, preprocess))


def learner(options: TrainOptions, examples: Examples) -> Learner:
    """The backbone with its weights, frozen, for clips as long as the longest of `examples`.

    A network of a fixed window (Whisper) is cut to that length, in whole seconds and with some
    silence, or to `max_seconds`: what it costs is the window, however short a clip is.

    Raises:
        OptionError: there is no such backbone, its weights cannot be had, or more seconds are
            asked for than it takes.
        DataError: the weights are of another network or not safe to load.
    """
    pretrained, origin, record = _frozen.load(options, "audio")
    pretrained, notes = _sized(pretrained, options, examples)
    record |= {"recipe": pretrained.recipe}
    how = pretrained.recipe["pooling"] if options.pooling == "auto" else options.pooling
    if how not in POOLINGS:
        raise OptionError(
            f"--pooling of {', '.join(POOLINGS)} for clips", got=how, fix="pass one of these"
        )
    extractor = _extractor(pretrained, how)
    width = _frozen.freeze(extractor, _silence(pretrained.preprocess), options.backbone)
    return Learner(
        extractor=extractor,
        width=width,
        network={**record, "pooling": how, "features": width},
        preprocess=pretrained.preprocess,
        source=origin,
        notes=notes,
    )


def _sized(
    pretrained: Pretrained, options: TrainOptions, examples: Examples
) -> tuple[Pretrained, tuple[str, ...]]:
    """The network for clips of the length asked for, and a note where some are cut."""
    rate, limit = pretrained.preprocess["rate"], pretrained.preprocess["longest"]
    if options.max_seconds * rate > limit:
        raise OptionError(
            f"--max-seconds up to the {limit / rate:g} that {options.backbone} takes",
            got=f"{options.max_seconds:g}",
            fix=f"pass --max-seconds {limit / rate:g} or less",
        )
    longest_ms = max((e.size for e in (*examples.train, *examples.val)), default=0)
    if pretrained.narrow is not None:
        seconds = options.max_seconds or -(-longest_ms // 1000) + SILENCE_S
        pretrained = pretrained.narrow(min(limit, round(seconds * rate)))
    elif options.max_seconds:
        numbers = pretrained.preprocess
        numbers["longest"] = max(numbers["shortest"], round(options.max_seconds * rate))
    most_ms = pretrained.preprocess["longest"] * 1000 / rate
    cut = sum(e.size > most_ms for e in (*examples.train, *examples.val))
    note = f"{cut} clips are longer than {most_ms / 1000:g} s; what follows is cut off"
    return pretrained, (note,) if cut else ()


def spec(name: str, labels: tuple[str, ...], learner: Learner) -> ModelSpec:
    """samples: float32 [batch, samples] -> logits: float32 [batch, classes].

    Networks that take clips of any length have a second input, attention_mask: bool
    [batch, samples], true for what is no padding.
    """
    shape = ("batch", "samples")
    inputs = [TensorSpec(name="samples", dtype="float32", shape=shape, legal=(-1, 1))]
    if learner.preprocess["mask"]:
        inputs.append(TensorSpec(name="attention_mask", dtype="bool", shape=shape))
    return _linear.spec(name, NAME, tuple(inputs), labels, learner)


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """
    return _linear.network(bundle, lambda kept, record: _extractor(kept, record["pooling"]))


def probes(spec: ModelSpec, inputs: dict[str, np.ndarray], most: int) -> list[Probe]:
    """The shortest, an odd and the longest clip, silence, full scale; golden clips padded more."""
    numbers = spec.preprocess
    clips = [_own(inputs, row) for row in range(len(inputs["samples"]))]
    order = sorted(range(len(clips)), key=lambda row: len(clips[row]))
    long = clips[order[-1]]
    asked = []
    for name, length in (
        ("shortest clip", numbers["shortest"]),
        ("odd length", 2 * numbers["shortest"] + 1),
        ("longest clip", numbers["longest"]),
    ):
        length = min(length, numbers["longest"])
        asked.append(Probe(name=name, inputs=_padded([np.resize(long, length)], length, numbers)))
    second = min(numbers["rate"], numbers["longest"])
    square = np.sign(np.sin(np.arange(second) * 0.3)).astype(np.float32)
    for name, clip in (("silence", np.zeros(second, np.float32)), ("full scale", square)):
        asked.append(Probe(name=name, inputs=_padded([clip], second, numbers), extreme=True))
    few = tuple(dict.fromkeys([order[0], order[-1], *order]))[: max(1, min(most, 4))]
    first = clips[few[0]]
    asked.append(
        Probe(name="unpadded", inputs=_padded([first], len(first), numbers), same_as=few[:1])
    )
    wide = len(long) + FARTHER
    asked.append(
        Probe(
            name="padded more",
            inputs=_padded([clips[row] for row in few], wide, numbers),
            same_as=few,
        )
    )
    return asked


def augment(
    inputs: dict[str, torch.Tensor], strength: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Clips at other levels, in noise and with gaps: float32 [batch, samples]; the mask stays."""
    made = _augment_clips.augment(
        inputs["samples"], inputs.get("attention_mask"), strength, generator
    )
    return {**inputs, "samples": made}


def _own(inputs: dict[str, np.ndarray], row: int) -> np.ndarray:
    """A golden clip without its padding, as far as that can be told."""
    clip = inputs["samples"][row]
    real = inputs["attention_mask"][row] if "attention_mask" in inputs else np.s_[:]
    return np.asarray(clip[real])


def _padded(clips: list[np.ndarray], width: int, numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    found = audio.batch([*clips, np.zeros(width, np.float32)], numbers)
    return {name: array[: len(clips)] for name, array in found.items()}


def _silence(numbers: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    samples = torch.zeros(1, numbers["shortest"])
    mask = (torch.ones_like(samples, dtype=torch.bool),)
    return (samples, *(mask if numbers["mask"] else ()))


def _extractor(pretrained: Pretrained, how: str) -> torch.nn.Module:
    return ClipFeatures(pretrained.module, POOLINGS[how]()).eval()
