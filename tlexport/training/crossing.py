"""How well heads do on what they did not see."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tlexport.environment import cores
from tlexport.training import head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossed:
    """`correct`: bool [held out], in the order of the examples; `loss` is their cross-entropy.

    `penalty` is the one of `head.PENALTIES` with the lower loss over all folds.
    """

    correct: np.ndarray
    loss: float
    penalty: float


def crossed(examples: head.Labelled, folds: np.ndarray, classes: int) -> Crossed:
    """Fit a head without each fold in turn, and ask it about that fold.

    folds: int64 [examples]; -1 is never held out.
    """
    held_out = np.flatnonzero(folds >= 0)
    logits = np.zeros((len(head.PENALTIES), len(folds), classes))

    def ask(place: int, fold: int) -> None:
        held = folds == fold
        learnt = head.Labelled(values=examples.values[~held], labels=examples.labels[~held])
        penalty = head.PENALTIES[place]
        logits[place, held] = head.answers(learnt, examples.values[held], classes, penalty)

    jobs = itertools.product(range(len(head.PENALTIES)), np.unique(folds[held_out]).tolist())
    with head.one_thread_each(), ThreadPoolExecutor(cores()) as pool:
        for job in [pool.submit(ask, *job) for job in jobs]:
            job.result()
    labels = examples.labels[held_out]
    losses = [_loss(each[held_out], labels) for each in logits]
    best = int(np.argmin(losses))
    return Crossed(
        correct=logits[best, held_out].argmax(axis=1) == labels,
        loss=losses[best],
        penalty=head.PENALTIES[best],
    )


def untrained(width: int, classes: int, seed: int) -> torch.nn.Linear:
    """A head for a network whose cost alone is asked for; the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(width, classes)


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of float [examples, classes]."""
    highest = logits.max(axis=1)
    whole = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((whole - logits[np.arange(len(labels)), labels]).mean())
