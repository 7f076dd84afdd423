"""A network that counts what it is asked, and how its features are computed."""

from __future__ import annotations

from pathlib import Path

import torch

from tlexport.tasks import Learner, image_classification
from tlexport.training.features import Extraction


class Counting(torch.nn.Module):
    """uint8 [batch, 16, 16, 3] -> the mean colour and a weight; counts what it is asked."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.rows = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += len(images)
        return images.float().mean(dim=(1, 2)) * self.weight


NUMBERS = {
    "size": [16, 16],
    "resize": [16, 16],
    "mode": "shortest",
    "interpolation": "bilinear",
    "fill": [0, 0, 0],
    "background": [255, 255, 255],
}


def extraction(cache: Path, weight: float = 1.0, batch: int = 8, **numbers) -> Extraction:
    module = Counting(weight)
    learner = Learner(
        extractor=module, width=3, network={}, preprocess=NUMBERS | numbers, source="test"
    )
    return Extraction(task=image_classification, learner=learner, cache=cache, batch=batch)


def asked(of: Extraction) -> int:
    module = of.learner.extractor
    assert isinstance(module, Counting)
    return module.rows
