"""Every classification network of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchvision import models

from tlexport import plugins
from tlexport.backbones import Pretrained, image_numbers

AUXILIARY = {
    "inception_v3": ("AuxLogits.",),
    "googlenet": ("aux1.", "aux2."),
}
"""Networks with heads that only training uses; they are built without, their weights dropped."""


def names() -> list[str]:
    """The networks there are."""
    return sorted(models.list_models(module=models))


def build(name: str, recipe: Mapping[str, Any] | None = None) -> Pretrained:
    """The network `name` with start weights, and its default weights' preprocessing.

    Raises:
        OptionError: torchvision has no classification network of that name.
    """
    if name not in names():
        raise plugins.unknown("torchvision backbone", name, names())
    default = models.get_model_weights(name).DEFAULT
    options: dict[str, Any] = {}
    if name in AUXILIARY:
        # The published weights expect inputs scaled as in the original code (transform_input).
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": default.meta["min_size"][0]}
    module = models.get_model(name, weights=None, **options)
    if name.startswith("squeezenet"):
        return _pretrained(module, "classifier", _pool_squeezenet, default)
    head = [path for path, part in module.named_modules() if isinstance(part, torch.nn.Linear)][-1]
    return _pretrained(module, head, _identity_at(head), default, AUXILIARY.get(name, ()))


def fetch(name: str) -> dict[str, torch.Tensor]:
    """Download (or find in torch's cache) the default weights of `name`, digest checked."""
    weights = models.get_model_weights(name).DEFAULT
    state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return state


def _pretrained(
    module: torch.nn.Module, head: str, behead: Any, default: Any, auxiliary: tuple[str, ...] = ()
) -> Pretrained:
    preset = default.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    return Pretrained(
        module=module,
        behead=behead,
        spare=(f"{head}.", *auxiliary),
        preprocess=image_numbers(
            size=(crop, crop),
            resize=(resize, resize),
            interpolation=preset.interpolation.value,
            statistics=(tuple(preset.mean), tuple(preset.std)),
        ),
    )


def _identity_at(path: str) -> Any:
    def behead(module: torch.nn.Module) -> None:
        module.set_submodule(path, torch.nn.Identity())

    return behead


def _pool_squeezenet(module: torch.nn.Module) -> None:
    """Its classifier is a convolution; pooled and flat, its inputs are features like any other."""
    module.classifier = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
