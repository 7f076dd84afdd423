"""Which of the classes an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tlexport.backbones import Pretrained
from tlexport.bundle import Bundle
from tlexport.options import DataOptions, TrainOptions
from tlexport.preprocess import image
from tlexport.spec import ModelSpec, Probe, TensorSpec
from tlexport.tasks import (
    Examples,
    Learner,
    Loaded,
    Source,
    _augment_images,
    _class_folders,
    _frozen,
    _linear,
)
from tlexport.tasks._classify import decide as decide
from tlexport.tasks._classify import scorer as scorer
from tlexport.tasks._linear import assemble as assemble

NAME = "image-classification"
RAW = image
CANDIDATES = (
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v3_large",
    "timm/tf_efficientnet_lite0",
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/convnext_tiny",
)

IMAGES = _class_folders.Kind(suffixes=image.suffixes(), name="images")


class Pixels(torch.nn.Module):
    """uint8 [batch, height, width, 3] -> normalised float32 [batch, 3, height, width]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = [1 / (255 * value) for value in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scale to 0 .. 1, subtract the mean, divide by the deviation: one multiply and one add."""
        return images.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift


def read(root: Path, choice: DataOptions | None = None, known: tuple[str, ...] = ()) -> Examples:
    """The labelled images below `root`: a folder per class, or train/ and val/ above those.

    With `known` labels, for an evaluation, the folders may be some of them.

    Raises:
        DataError: the layout is another, or a class is empty.
    """
    return _class_folders.read(root, IMAGES, known)


def load(
    sources: Sequence[Source], preprocess: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> Loaded:
    """Decode images side by side: {"images": uint8 [batch, height, width, 3]}."""
    return Loaded(*image.arrays(sources, preprocess))


def learner(options: TrainOptions, examples: Examples) -> Learner:
    """The backbone SOURCE/NAME with its weights, frozen, its classifier taken off.

    Raises:
        OptionError: there is no such backbone, or its weights cannot be had.
        DataError: the weights are of another network or not safe to load.
    """
    pretrained, origin, record = _frozen.load(options, "image")
    extractor = _extractor(pretrained, pretrained.preprocess)
    sample = torch.zeros(1, *pretrained.preprocess["size"], 3, dtype=torch.uint8)
    width = _frozen.freeze(extractor, (sample,), options.backbone)
    return Learner(
        extractor=extractor,
        width=width,
        network={**record, "features": width},
        preprocess=pretrained.preprocess,
        source=origin,
    )


def spec(name: str, labels: tuple[str, ...], learner: Learner) -> ModelSpec:
    """images: uint8 [batch, height, width, 3] -> logits: float32 [batch, classes]."""
    height, width = learner.preprocess["size"]
    shape = ("batch", height, width, 3)
    images = TensorSpec(name="images", dtype="uint8", shape=shape, legal=(0, 255))
    return _linear.spec(name, NAME, (images,), labels, learner)


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """
    return _linear.network(bundle, lambda kept, record: _extractor(kept, bundle.spec.preprocess))


def probes(spec: ModelSpec, inputs: dict[str, np.ndarray], most: int) -> list[Probe]:
    """None: every image has one size."""
    return []


def augment(
    inputs: dict[str, torch.Tensor], strength: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Images cropped, mirrored and in other light: uint8 [batch, height, width, 3]."""
    return {"images": _augment_images.augment(inputs["images"], strength, generator)}


def _extractor(pretrained: Pretrained, numbers: dict[str, Any]) -> torch.nn.Module:
    pretrained.behead(pretrained.module)
    return torch.nn.Sequential(Pixels(numbers["mean"], numbers["std"]), pretrained.module).eval()
