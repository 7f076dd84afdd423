"""A frozen extractor and a linear head as one classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from tlexport.backbones import Pretrained
from tlexport.bundle import Bundle
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.tasks import Learner, _frozen


class Classifier(torch.nn.Module):
    """What the extractor takes -> float32 logits [batch, classes]."""

    def __init__(self, extractor: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The tensors of `ModelSpec.inputs` in order -> logits: float32 [batch, classes]."""
        return cast(torch.Tensor, self.head(self.extractor(*inputs)))


def spec(
    name: str, task: str, inputs: tuple[TensorSpec, ...], labels: tuple[str, ...], learner: Learner
) -> ModelSpec:
    """Those inputs -> logits: float32 [batch, classes]."""
    return ModelSpec(
        name=name,
        task=task,
        inputs=inputs,
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", len(labels))),),
        labels=labels,
        preprocess=learner.preprocess,
    )


def assemble(learner: Learner, head: torch.nn.Linear) -> torch.nn.Module:
    """The finished network."""
    return Classifier(learner.extractor, head).eval()


def network(
    bundle: Bundle, extractor: Callable[[Pretrained, dict[str, Any]], torch.nn.Module]
) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    `extractor` makes features of a backbone and of `Manifest.network`.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """

    def whole(pretrained: Pretrained, record: dict[str, Any]) -> torch.nn.Module:
        head = torch.nn.Linear(record["features"], len(bundle.spec.labels))
        return Classifier(extractor(pretrained, record), head)

    return _frozen.restore(bundle, whole)
