"""Two-class bundles of well-known networks, built without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tlexport.bundle import Bundle
from tlexport.options import TrainOptions
from tlexport.tasks import Example, Learner, image_classification
from tlexport.training import finish


def bundle_of(backbone: str, weights: str, photos: Sequence[Path], folder: Path) -> Bundle:
    """The bundle of `backbone` with a random head, and `photos` as its golden samples."""
    learner = image_classification.learner(TrainOptions(backbone=backbone, weights=weights), None)
    model = finish.Model(
        task=image_classification,
        spec=image_classification.spec(backbone.split("/")[1], ("no", "yes"), learner),
        learner=learner,
        network=image_classification.assemble(learner, _head(learner, photos)),
    )
    examples = [
        Example(source=path, label=row % 2, digest=path.name) for row, path in enumerate(photos)
    ]
    folder.mkdir(parents=True)
    return finish.write(folder, model, examples)


def _head(learner: Learner, photos: Sequence[Path]) -> torch.nn.Linear:
    """A random head scaled to answer around 1 on these photos, as a trained one would.

    Random weights lose the signal layer by layer; without this an absolute difference between
    two runtimes would say nothing.
    """
    loaded = image_classification.load(photos, learner.preprocess)
    assert not loaded.broken
    torch.manual_seed(0)
    head = torch.nn.Linear(learner.width, 2)
    with torch.inference_mode():
        features = learner.extractor(torch.from_numpy(loaded.inputs["images"]))
        centred = features - features.mean(0)
        head.weight.normal_().div_((centred @ head.weight.T).std())
        head.bias.copy_(-head.weight @ features.mean(0))
    return head
