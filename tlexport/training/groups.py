"""Parameter groups of the optimiser: a rate for each depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tlexport.training.blocks import Block

POSITIONS = ("pos_embed", "position", "cls_token", "class_token", "relative_attention_bias")
"""In the names of parameters that say where or what a token is: no weight decay on these, as in
BERT's, ViT's and BEiT's own training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """`learning_rate` is the head's; a block's is multiplied by `decay` at each step away from it.

    Early layers carry what is common to all data and want small steps: discriminative rates
    (Howard and Ruder, "Universal Language Model Fine-tuning", 2018, with 1 / 2.6) or layer-wise
    rate decay (Bao et al., "BEiT", 2021, with 0.65 to 0.75).
    """

    learning_rate: float
    weight_decay: float
    decay: float = 1.0


def groups(
    head: torch.nn.Module, extractor: torch.nn.Module, found: Sequence[Block], rates: Rates
) -> list[dict[str, Any]]:
    """What torch's optimisers take: `params`, `lr`, `weight_decay`, and a `name` for people.

    `found` are all blocks of the extractor; a frozen parameter (without `requires_grad`) is left
    out. Parameters that belong to no block, an adapter's, have the head's rate. Norms, biases and
    positions are not decayed.
    """
    given = dict(extractor.named_parameters())
    blocked = {name for block in found for name in block.parameters}
    adapters = [(name, each) for name, each in given.items() if name not in blocked]
    made = _halves("head", [*head.named_parameters(), *adapters], 1.0, rates)
    for distance, block in enumerate(reversed(found), start=1):
        own = [(name, given[name]) for name in block.parameters if name in given]
        made += _halves(block.name, own, rates.decay**distance, rates)
    return made


def _halves(
    name: str, named: Iterable[tuple[str, torch.nn.Parameter]], factor: float, rates: Rates
) -> list[dict[str, Any]]:
    """The decayed and the undecayed parameters that train, as far as there are any."""
    halves: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for path, each in named:
        if each.requires_grad:
            halves[_decays(path, each)].append(each)
    return [
        {
            "name": name if decays else f"{name}, undecayed",
            "params": params,
            "lr": rates.learning_rate * factor,
            "weight_decay": rates.weight_decay if decays else 0.0,
        }
        for decays, params in halves.items()
        if params
    ]


def _decays(path: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim > 1 and not any(word in path for word in POSITIONS)
