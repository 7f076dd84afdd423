"""Image networks: pixels in the graph, raw images drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tlexport.bundle import Raw
from tlexport.spec import TensorSpec
from tlexport.tasks.image_classification import Pixels

COARSE = 8
"""Blobs along an edge of a drawn image: noise finer than a pixel would not survive resizing."""


class Behind(torch.nn.Module):
    """uint8 [batch, height, width, 3] -> what a network answers to them normalised."""

    def __init__(
        self, network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.pixels = Pixels(mean, std)
        self.network = network

    def forward(self, images: torch.Tensor) -> Any:
        """images: uint8 [batch, height, width, 3]."""
        return self.network(self.pixels(images))


def inputs_of(preprocess: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """images: uint8 [batch, height, width, 3]."""
    height, width = preprocess["size"]
    shape = ("batch", height, width, 3)
    return (TensorSpec(name="images", dtype="uint8", shape=shape, legal=(0, 255)),)


def drawn(preprocess: dict[str, Any], count: int, rng: np.random.Generator) -> list[Raw]:
    """Image files of coloured blobs, as large as they are resized to, all different."""
    height, width = (
        max(pair) for pair in zip(preprocess["resize"], preprocess["size"], strict=True)
    )
    header = b"P6 %d %d 255\n" % (width, height)
    found = []
    for number in range(count):
        blobs = rng.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
        rows, columns = (np.arange(n) * COARSE // n for n in (height, width))
        pixels = blobs[rows][:, columns]
        found.append(Raw(name=f"drawn-{number}.ppm", content=header + pixels.tobytes()))
    return found
