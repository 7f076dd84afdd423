"""Images seen otherwise: cropped, mirrored, in other light."""

from __future__ import annotations

import math

import torch
from torchvision.transforms.v2 import functional

AREA = 0.08
"""Least share of an image that a crop keeps at full strength (Szegedy et al., 2014)."""

SIDES = math.log(4 / 3)
"""A crop's sides differ by at most this factor's logarithm, at full strength."""

LIGHT = 0.4
"""Brightness, contrast and saturation change by up to this factor at full strength."""

HUE = 0.1


def augment(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Each image by a crop, a mirror and a light of its own; uint8 [batch, height, width, 3].

    `strength` 0 changes nothing, 1 crops down to `AREA` and mirrors every second image; between
    them all grows evenly. Random numbers come from `generator` alone.
    """
    if strength == 0:
        return images
    draws = torch.rand(len(images), 9, generator=generator).double().tolist()
    made = [
        _changed(image, draw, strength)
        for image, draw in zip(images.permute(0, 3, 1, 2), draws, strict=True)
    ]
    return torch.stack(made).permute(0, 2, 3, 1).contiguous()


def _changed(image: torch.Tensor, draw: list[float], strength: float) -> torch.Tensor:
    """image: uint8 [3, height, width]; draw: nine numbers of 0 .. 1."""
    height, width = image.shape[1:]
    share = 1 - draw[0] * strength * (1 - AREA)
    shape = math.exp((2 * draw[1] - 1) * strength * SIDES / 2)
    rows = min(height, max(1, round(height * math.sqrt(share) / shape)))
    columns = min(width, max(1, round(width * math.sqrt(share) * shape)))
    top, left = round(draw[2] * (height - rows)), round(draw[3] * (width - columns))
    image = functional.resized_crop(
        image, top, left, rows, columns, size=[height, width], antialias=True
    )
    if draw[4] < strength / 2:
        image = functional.horizontal_flip(image)
    bright, contrast, saturation = (1 + (2 * d - 1) * strength * LIGHT for d in draw[5:8])
    image = functional.adjust_brightness(image, bright)
    image = functional.adjust_contrast(image, contrast)
    image = functional.adjust_saturation(image, saturation)
    changed: torch.Tensor = functional.adjust_hue(image, (2 * draw[8] - 1) * strength * HUE)
    return changed
