"""Where knowledge comes from: one file per source of networks.

A file of this folder offers

    names() -> list[str]                      what can be loaded
    build(name, recipe=None) -> Pretrained    the network, with its start weights
    fetch(name) -> dict[str, torch.Tensor]    its trained weights, from the source's own hub

`build` with the `Pretrained.recipe` of an earlier call builds the same network again, though the
folder or hub that it was described in be gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network as its makers built it, and how it becomes a feature extractor.

    `modality` says what `module` takes and gives, `behead` having taken off its classifier:

    image   normalised float32 [batch, 3, height, width] -> float32 [batch, width]
    text    input_ids, attention_mask: int64 [batch, sequence] -> float32 [batch, sequence, width]
    audio   samples: float32 [batch, samples], and attention_mask: bool [batch, samples] where
            `preprocess["mask"]` -> float32 [batch, frames, width] and bool [batch, frames], True
            where a frame is of the clip itself

    `spare` are the prefixes of weights that are not needed then: the classifier's and those of
    heads that only training uses. `preprocess` are the numbers of `preprocess/` (of images also
    `mean` and `std` of values scaled to 0 .. 1), `files` what it needs besides, by name. `recipe`
    is plain data, `home` where `fetch` finds the weights, in the user's words.
    """

    module: torch.nn.Module
    behead: Callable[[torch.nn.Module], None]
    spare: tuple[str, ...]
    preprocess: dict[str, Any]
    modality: Literal["image", "text", "audio"] = "image"
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    home: str = "hub"


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
