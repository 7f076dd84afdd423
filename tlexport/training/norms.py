"""Which layers of a partly frozen network are in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tlexport.training.blocks import Block

MOMENTUM = 0.1
REMEMBERED = 10
"""Running statistics of a network that starts from random weights move by a tenth of the difference
at each step, or, where an epoch has more than a hundred steps, by ten over their number (Kornblith
et al., "Do Better ImageNet Models Transfer Better?", 2019, appendix). Some networks come with 0.01,
and would after fifty steps still answer by the statistics they started with; one batch alone must
not decide them either."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """`steps` per epoch; `fresh`: the weights are random, and their statistics none to keep."""

    steps: int
    fresh: bool = False


def freeze(extractor: torch.nn.Module, trained: Sequence[Block]) -> None:
    """Let the parameters of those blocks train, and no others."""
    names = {name for block in trained for name in block.parameters}
    for name, parameter in extractor.named_parameters():
        parameter.requires_grad_(name in names)


def hold(extractor: torch.nn.Module, trained: Sequence[Block], pace: Pace) -> None:
    """Put the trained blocks in training mode and all else in evaluation mode.

    To be called whenever something has called `train()`. What is frozen neither drops units nor
    moves its statistics: it answers as it will when served. That holds for the modules around the
    blocks, too: there libraries skip whole layers or mask their inputs by random numbers of their
    own, and GoogLeNet answers with its auxiliary heads. A BatchNorm of a pre-trained network keeps
    the statistics it came with and trains its scale and shift: the head was fitted on what it
    answers by them, and a batch's own, or those of a small set of data, would undo that (the
    usual advice, as in Keras's guide to transfer learning).
    """
    extractor.eval()
    for block in trained:
        for name in block.modules:
            extractor.get_submodule(name).train()
    for module in extractor.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
            if not pace.fresh:
                module.eval()
            elif module.momentum is not None:
                module.momentum = min(MOMENTUM, REMEMBERED / max(1, pace.steps))
