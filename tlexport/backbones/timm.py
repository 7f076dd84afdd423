"""Every network of timm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import timm
import timm.data
import torch

from tlexport import plugins
from tlexport.backbones import Pretrained, image_numbers
from tlexport.errors import OptionError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")


def names() -> list[str]:
    """The networks there are; a pre-trained tag may follow after a dot."""
    return cast(list[str], timm.list_models())


def build(name: str, recipe: Mapping[str, Any] | None = None) -> Pretrained:
    """The network `name` with start weights, and its configuration's evaluation preprocessing.

    Raises:
        OptionError: timm has no network of that name, it is no classification network, or it
            takes no three-channel images.
    """
    if not timm.is_model(name.split(".")[0]):
        raise plugins.unknown("timm backbone", name, names())
    try:
        module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # a tag after the dot that there is not
        raise plugins.unknown("timm backbone", name, _tagged(name)) from error
    if not hasattr(module, "reset_classifier"):
        raise OptionError(
            "a classification network",
            got=f"{name} is the encoder of another kind of model",
            fix="choose another with `tlexport backbones`",
        )
    config = timm.data.resolve_data_config({}, model=module)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise OptionError(
            "a network for images of 3 channels",
            got=f"{name} takes {channels}",
            fix="choose another with `tlexport backbones`",
        )
    classifier = module.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    interpolation = config["interpolation"]
    return Pretrained(
        module=module,
        behead=_reset,
        spare=tuple(f"{head}." for head in heads),
        preprocess=image_numbers(
            size=(height, width),
            resize=(
                math.floor(height / config["crop_pct"]),
                math.floor(width / config["crop_pct"]),
            ),
            interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
            statistics=(tuple(config["mean"]), tuple(config["std"])),
            mode=_mode(config["crop_mode"]),
        ),
    )


def fetch(name: str) -> dict[str, torch.Tensor]:
    """Download (or find in the hub's cache) the weights of `name`."""
    module: torch.nn.Module = timm.create_model(name, pretrained=True)
    return module.state_dict()


def _tagged(name: str) -> list[str]:
    return cast(list[str], timm.list_models(f"{name.split('.')[0]}.*", pretrained=True))


def _mode(crop_mode: str | None) -> str:
    return crop_mode if crop_mode in ("squash", "border") else "shortest"


def _reset(module: torch.nn.Module) -> None:
    cast(Any, module).reset_classifier(0)
