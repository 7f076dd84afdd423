"""Whether features in bfloat16 make as good a head."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from tlexport.environment import multiplies_bf16
from tlexport.options import TrainOptions
from tlexport.progress import silent
from tlexport.training import head
from tlexport.training.forward import device

SAMPLE = 256
"""Examples computed in both precisions to find out."""

LEAST = 1_000
"""Examples from which finding out pays."""

TRIALS = 3
"""Of the head: one by AdamW and the two that are solved exactly, which few examples need."""

DROP = 0.01
"""Accuracy that may be lost."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy on float32 features of heads that were fitted on float32 and on bfloat16 ones."""

    exact: float
    half: float

    @property
    def holds(self) -> bool:
        """Whether the head of bfloat16 features loses no more than `DROP`."""
        return self.half >= self.exact - DROP


def available() -> bool:
    """Whether the GPU or CPU that will compute the features multiplies bfloat16 itself."""
    if device() == "cpu":
        return multiplies_bf16()
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def sample(labels: Sequence[int], most: int = SAMPLE) -> list[int]:
    """Rows of at most `most` examples, spread evenly over the classes in turn."""
    order = np.argsort(np.asarray(labels, dtype=np.int64), kind="stable")
    places = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def judge(exact: np.ndarray, half: np.ndarray, labels: np.ndarray) -> Verdict:
    """Fit a head on every other example in each precision, and ask the rest.

    The rest is asked in float32 by both: so the finished model computes, which has one network.

    exact, half: float32 [examples, width] of the same examples; labels: int64 [examples], sorted
    """
    fitted, asked = slice(0, None, 2), slice(1, None, 2)
    names, numbers = np.unique(labels, return_inverse=True)
    rest = head.Labelled(values=exact[asked], labels=numbers[asked])
    found = []
    for values in (exact, half):
        part = head.Labelled(values=values[fitted], labels=numbers[fitted])
        best, _ = head.search(part, rest, len(names), TrainOptions(trials=TRIALS), silent)
        found.append(best.report.val_accuracy)
    return Verdict(exact=found[0], half=found[1])
