"""Networks of many families with random weights, and inputs for each."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import tiny_audio
import tiny_text
import torch

from tlexport.backbones import timm, torchvision, transformers
from tlexport.tasks import audio_classification, image_classification, text_classification

IMAGES = {
    # blocks, the first and the last of them
    "torchvision/resnet18": (9, "1.conv1", "1.layer4.1"),
    "torchvision/mobilenet_v2": (19, "1.features.0", "1.features.18"),
    "torchvision/vgg11_bn": (10, "1.features.0", "1.classifier.3"),
    "torchvision/squeezenet1_1": None,
    "torchvision/densenet121": None,
    "torchvision/vit_b_32": (13, "1.conv_proj", "1.encoder.layers.encoder_layer_11"),
    "torchvision/convnext_tiny": None,
    "torchvision/efficientnet_b0": None,
    "torchvision/swin_t": None,
    "timm/tf_efficientnet_lite0": (17, "1.conv_stem", "1.conv_head"),
    "timm/vit_tiny_patch16_224": (13, "1.patch_embed", "1.blocks.11"),
    "timm/convnext_atto": (16, "1.stem", "1.stages.3.blocks.1"),
    "timm/regnety_002": (5, "1.stem", "1.s4"),
    "timm/mixer_s32_224": (9, "1.stem", "1.blocks.7"),
    "timm/maxvit_tiny_tf_224": None,
}
TEXTS = {name: (3, None, None) for name in tiny_text.FAMILIES} | {
    "albert": (2, None, None),  # its layers share their weights
    "modernbert": (5, "backbone.model.embeddings", "backbone.model.layers.3"),
}
CLIPS = {
    "wav2vec2": (11, "backbone.network.feature_extractor.conv_layers.0", None),
    "hubert": (11, None, None),
    "wavlm": (11, None, None),
    "ast": (3, "backbone.network.embeddings", "backbone.network.layers.1"),
    "whisper": (3, None, "backbone.network.layers.1"),
}
SOURCES = {"torchvision": torchvision, "timm": timm}

Made = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]


@functools.cache
def _folder(family: str) -> Path:
    place = Path(tempfile.mkdtemp())
    write = tiny_audio.write if family in CLIPS else tiny_text.write
    return write(place, family)


def image(name: str) -> Made:
    """The extractor SOURCE/NAME and a batch of two images."""
    source, _, name = name.partition("/")
    torch.manual_seed(0)
    pretrained = SOURCES[source].build(name)
    numbers = pretrained.preprocess
    shape = (2, *numbers["size"], 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return image_classification._extractor(pretrained, numbers), (images,)


def text(family: str) -> Made:
    """An extractor of that family and two texts."""
    extractor = text_classification._extractor(transformers.build(str(_folder(family))), "mean")
    _settle(extractor, transformers.fetch(str(_folder(family))))
    return extractor, (torch.arange(4, 16).reshape(2, 6), torch.ones(2, 6, dtype=torch.int64))


def clip(family: str) -> Made:
    """An extractor of that family and two clips."""
    pretrained = transformers.build(str(_folder(family)))
    extractor = audio_classification._extractor(pretrained, "mean")
    numbers = pretrained.preprocess
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(2, max(4000, numbers["shortest"]), generator=generator) - 0.5
    mask = (torch.ones_like(samples, dtype=torch.bool),) if numbers["mask"] else ()
    return extractor, (samples, *mask)


def _settle(extractor: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    extractor.backbone.load_state_dict(state, strict=False)


def of(name: str) -> Made:
    """Whichever of the above."""
    return image(name) if name in IMAGES else clip(name) if name in CLIPS else text(name)


EXPECTED = {**IMAGES, **TEXTS, **CLIPS}
