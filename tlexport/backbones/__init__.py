"""Where knowledge comes from: one file per source of networks.

A file of this folder offers

    names() -> list[str]                      what can be loaded
    build(name) -> Pretrained                 the network, with its start weights
    fetch(name) -> dict[str, torch.Tensor]    its trained weights, from the source's own hub
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network as its makers built it, and how it becomes a feature extractor.

    `module` takes normalised inputs (float32 [batch, 3, height, width] for images). `behead`
    takes off its classifier in place. `spare` are the prefixes of weights that are not needed
    then: the classifier's and those of heads that only training uses. `preprocess` are the
    numbers of `preprocess/` and the `mean` and `std` of values scaled to 0 .. 1.
    """

    module: torch.nn.Module
    behead: Callable[[torch.nn.Module], None]
    spare: tuple[str, ...]
    preprocess: dict[str, Any]


def image_numbers(
    *,
    size: tuple[int, int],
    resize: tuple[int, int],
    interpolation: str,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    mode: str = "shortest",
) -> dict[str, Any]:
    """The preprocessing of an image network, as `preprocess/image.py` wants it.

    `statistics` are mean and deviation per channel, of values scaled to 0 .. 1.
    """
    mean, std = statistics
    return {
        "size": list(size),
        "resize": list(resize),
        "mode": mode,
        "interpolation": interpolation,
        "fill": [round(255 * value) for value in mean],
        "background": [255, 255, 255],
        "mean": list(mean),
        "std": list(std),
    }
