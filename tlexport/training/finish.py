"""The trained network and its golden samples, as a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tlexport import networks
from tlexport.bundle import Bundle, Draft, Raw, fill
from tlexport.spec import ModelSpec
from tlexport.tasks import Example, Learner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network and what it is for."""

    task: ModuleType
    spec: ModelSpec
    learner: Learner
    network: torch.nn.Module


def golden_of(held_out: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` held-out examples, as many of each class as can be, by seed."""
    rng = np.random.default_rng(seed)
    turns: dict[int, int] = {}
    order = []
    for place in rng.permutation(len(held_out)):
        label = held_out[place].label
        turns[label] = turns.get(label, 0) + 1
        order.append((turns[label], int(place)))
    return [held_out[place] for _, place in sorted(order)[:count]]


def write(folder: Path, model: Model, golden: Sequence[Example]) -> Bundle:
    """Fill `folder` with the bundle of `model`: weights, golden samples, manifest."""
    network = model.network.cpu().to(memory_format=torch.contiguous_format).eval()
    inputs = model.task.load(
        [example.source for example in golden], model.learner.preprocess, model.learner.files
    ).inputs
    networks.save(network, folder / "weights.safetensors")
    draft = Draft(
        spec=model.spec,
        network=model.learner.network,
        inputs=inputs,
        outputs=networks.answers(network, inputs, [tensor.name for tensor in model.spec.outputs]),
        raw=[
            Raw(
                name=example.source.name,
                content=example.source.read_bytes(),
                label=model.spec.labels[example.label],
            )
            for example in golden
        ],
        files=model.learner.files,
    )
    return fill(folder, draft)
