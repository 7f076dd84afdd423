"""The order in which examples are seen, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from tlexport.tasks import Example, Learner, batches

WINDOW = 16
"""Batches whose examples are put in order of size: those of a size meet, and still by chance."""


class Batch(NamedTuple):
    """A process's part of a step.

    `inputs` in the order of the model's, `labels` int64 [batch], and `share` float32 [batch]: what
    each example counts of the whole step's loss. All shares of a step sum up to 1.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    share: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Examples and how they become batches: `most` to a step, of all `count` processes together.

    `weights` float64 [classes] says what an example of each class counts.
    """

    task: ModuleType
    learner: Learner
    examples: Sequence[Example]
    most: int
    weights: np.ndarray
    rank: int = 0
    count: int = 1

    def steps(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Rows of every step of an epoch, by chance but for sizes; equal arguments, equal rows."""
        draw = np.random.default_rng([seed, epoch])
        rows = draw.permutation(len(self.examples))
        window = WINDOW * self.most
        sizes = np.array([example.size for example in self.examples])
        for at in range(0, len(rows), window):
            part = rows[at : at + window]
            rows[at : at + window] = part[np.argsort(sizes[part], kind="stable")]
        found = self._cut(rows)
        return [found[place] for place in draw.permutation(len(found))]

    def sorted(self) -> list[np.ndarray]:
        """Rows of every batch of one pass in order of size."""
        order = sorted(range(len(self.examples)), key=lambda row: self.examples[row].size)
        return self._cut(np.array(order))

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        ordered = [self.examples[row] for row in rows]
        budget = getattr(self.task, "BUDGET", 0) * self.count
        ends = np.cumsum([len(part) for part in batches(ordered, self.most, budget)])
        return np.split(rows, ends[:-1])

    def stream(self, steps: Sequence[np.ndarray], draws: Draws | None = None) -> Stream:
        """Those steps, loaded."""
        return Stream(self, steps, draws)

    def load(self, rows: np.ndarray, draws: Draws | None) -> Batch:
        """The process's part of a step; one that would be empty is an example of no weight."""
        mine = rows[self.rank :: self.count]
        counts = self.weights[[self.examples[row].label for row in rows]]
        shares = (counts / counts.sum())[self.rank :: self.count]
        if not len(mine):
            mine, shares = rows[:1], np.zeros(1)
        asked = [self.examples[row] for row in mine]
        arrays = self.task.load(
            [example.source for example in asked], self.learner.preprocess, self.learner.files
        ).inputs
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if draws is not None and draws.strength:
            inputs = self._augmented(inputs, mine, draws)
        return Batch(
            inputs=tuple(inputs.values()),
            labels=torch.tensor([example.label for example in asked]),
            share=torch.from_numpy(shares.astype(np.float32)),
        )

    def _augmented(
        self, inputs: dict[str, torch.Tensor], rows: np.ndarray, draws: Draws
    ) -> dict[str, torch.Tensor]:
        """Each example changed by random numbers of its own, whichever process has it."""
        made = [
            self.task.augment(
                {name: each[place : place + 1] for name, each in inputs.items()},
                draws.strength,
                torch.Generator().manual_seed(draws.of(int(row), 0)),
            )
            for place, row in enumerate(rows)
        ]
        return {name: torch.cat([one[name] for one in made]) for name in inputs}


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of an epoch: each step's and each example's own, whenever it is run."""

    seed: int
    epoch: int
    strength: float

    def of(self, number: int, kind: int) -> int:
        """A seed for a step or an example, of some kind of numbers."""
        words = np.random.SeedSequence([self.seed, self.epoch, number, kind])
        return int(words.generate_state(1, np.uint64)[0] >> 1)


class Stream:
    """Batches, the next one being loaded meanwhile."""

    def __init__(self, source: Source, steps: Sequence[np.ndarray], draws: Draws | None) -> None:
        self._source = source
        self._steps = steps
        self._draws = draws

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        if not len(self):
            return
        with ThreadPoolExecutor(max_workers=1) as ahead:
            waiting = ahead.submit(self._load, 0)
            for step in range(1, len(self)):
                batch = waiting.result()
                waiting = ahead.submit(self._load, step)
                yield batch
            batch = waiting.result()
        # After the block: whoever counts does not come back for the end, and what Python clears
        # away then would swallow a Ctrl-C while it waits for a thread.
        yield batch

    def _load(self, step: int) -> Batch:
        return self._source.load(self._steps[step], self._draws)
