"""Which of the classes an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch

from tlexport import plugins
from tlexport.backbones import Pretrained, _weights
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError
from tlexport.preprocess import image
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.tasks import Examples, Learner, Loaded, _class_folders
from tlexport.tasks._classify import decide as decide
from tlexport.tasks._classify import score as score

NAME = "image-classification"

REASON = 200
"""Characters told of torch's reason not to load weights: it lists every tensor."""


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


class Classifier(torch.nn.Module):
    """Pixels, backbone and head as one network: uint8 images -> float32 logits [batch, classes]."""

    def __init__(self, extractor: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: uint8 [batch, height, width, 3] -> logits: float32 [batch, classes]."""
        return cast(torch.Tensor, self.head(self.extractor(images)))


def read(root: Path, known: tuple[str, ...] = ()) -> Examples:
    """The labelled images below `root`: a folder per class, or train/ and val/ above those.

    With `known` labels, for an evaluation, the folders may be some of them.

    Raises:
        DataError: the layout is another, or a class is empty.
    """
    return _class_folders.read(root, image.suffixes(), "images", known)


def load(paths: Sequence[Path], preprocess: dict[str, Any]) -> Loaded:
    """Decode images side by side: {"images": uint8 [batch, height, width, 3]}."""
    pixels = np.zeros((len(paths), *preprocess["size"], 3), dtype=np.uint8)
    broken: dict[int, str] = {}

    def decode(row: int) -> None:
        try:
            pixels[row] = image.load(paths[row], preprocess)
        except ValueError as error:
            broken[row] = str(error)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))
    return Loaded({"images": pixels}, dict(sorted(broken.items())))


def learner(backbone: str, weights: str | None, seed: int) -> Learner:
    """The backbone SOURCE/NAME with its weights, frozen, its classifier taken off.

    Raises:
        OptionError: there is no such backbone, or its weights cannot be had.
        DataError: the weights are of another network or not safe to load.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source, name, pretrained = _build(backbone)
    origin = _weights.load(pretrained, weights, lambda: source.fetch(name))
    extractor = _extractor(pretrained)
    for parameter in extractor.parameters():
        parameter.requires_grad_(False)
    height, width = pretrained.preprocess["size"]
    with torch.inference_mode():
        probe = extractor(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    if not (isinstance(probe, torch.Tensor) and probe.ndim == 2):
        raise OptionError(
            "a backbone that gives one row of features per image",
            got=f"{backbone} gives {list(getattr(probe, 'shape', [type(probe).__name__]))}",
            fix="choose a classification network, see `tlexport backbones`",
        )
    return Learner(
        extractor=extractor,
        width=probe.shape[1],
        network={"backbone": backbone, "features": probe.shape[1]},
        preprocess=pretrained.preprocess,
        source=origin,
    )


def spec(name: str, labels: tuple[str, ...], learner: Learner) -> ModelSpec:
    """images: uint8 [batch, height, width, 3] -> logits: float32 [batch, classes]."""
    height, width = learner.preprocess["size"]
    return ModelSpec(
        name=name,
        task=NAME,
        inputs=(
            TensorSpec(
                name="images", dtype="uint8", shape=("batch", height, width, 3), legal=(0, 255)
            ),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", len(labels))),),
        labels=labels,
        preprocess=learner.preprocess,
    )


def assemble(learner: Learner, head: torch.nn.Linear) -> torch.nn.Module:
    """The finished network."""
    return Classifier(learner.extractor, head).eval()


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """
    weights = safetensors.torch.load_file(bundle.weights)
    try:
        record = bundle.manifest.network
        _, _, pretrained = _build(record["backbone"])
        pretrained.preprocess.update(bundle.spec.preprocess)
        head = torch.nn.Linear(record["features"], len(bundle.spec.labels))
        whole = Classifier(_extractor(pretrained), head)
        _weights.put(whole, weights)
    except (KeyError, RuntimeError) as error:
        raise BundleError(
            f"a network in {str(bundle.root)!r} that its weights fit",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:REASON]}",
            fix="bundle.json was changed after it was made, or timm and torchvision since: restore "
            "the one, or install the versions in it",
        ) from error
    return whole.eval()


def _build(backbone: str) -> tuple[Any, str, Pretrained]:
    kind, slash, name = backbone.partition("/")
    if not (slash and name):
        raise OptionError(
            "a backbone written SOURCE/NAME, such as timm/resnet50.a1_in1k",
            got=repr(backbone),
            fix=f"put one of {', '.join(plugins.names('backbones'))} and a slash before the name; "
            "`tlexport backbones` lists all",
        )
    source = plugins.load("backbones", kind)
    return source, name, source.build(name)


def _extractor(pretrained: Pretrained) -> torch.nn.Module:
    pretrained.behead(pretrained.module)
    numbers = pretrained.preprocess
    return torch.nn.Sequential(Pixels(numbers["mean"], numbers["std"]), pretrained.module).eval()
