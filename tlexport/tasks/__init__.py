"""What a model is for: one file per task.

A file of this folder offers

    read(root, choice, known=()) -> Examples             the user's labelled examples
    load(sources, preprocess, files) -> Loaded           inputs to arrays, broken ones told
    learner(options, examples) -> Learner                a frozen network and its preprocessing
    spec(name, labels, learner) -> ModelSpec             what the finished model takes and answers
    assemble(learner, head) -> torch.nn.Module           extractor and head as one network
    network(bundle) -> torch.nn.Module                   the same, built again from a bundle
    probes(spec, inputs, most) -> list[Probe]            questions of other sizes for `verify`
    decide(spec, outputs) -> Decisions                   what the outputs say of each row
    scorer(spec) -> Scorer                               how often that is right
    augment(inputs, strength, generator) -> inputs       the same inputs seen otherwise, to train on

The network takes the tensors of `spec.inputs` in order and answers those of `spec.outputs`.
`preprocess` are numbers, and `files` what else preprocessing needs (a tokenizer), by name. RAW is
the module of `preprocess/` that reads raw inputs, of which a served pipeline runs a copy; a task
without one takes arrays. A task whose inputs differ in cost may say BUDGET, the most that the sizes
of one batch may sum up to. CANDIDATES are the networks that `select` tries where none are named:
some of each size. `augment` takes and gives tensors by their names in `spec.inputs`; a strength of
0 changes nothing, 1 is the most, and a task that has no such change refuses any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import torch


class Source(Protocol):
    """A raw input: a file (any `pathlib.Path`), or a row of a table. `str` tells the user which."""

    @property
    def name(self) -> str:
        """A file name for it, with the suffix of its format."""

    def read_bytes(self) -> bytes:
        """Its content as it came.

        Raises:
            OSError: it cannot be read.
        """


class Example(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One labelled input: `label` counts into `Examples.labels`, `digest` is of its content.

    `size` is what it will cost, in any unit: those of a size are asked together.
    """

    source: Any  # a Source; msgspec knows no protocols
    label: int
    digest: str
    size: int = 0


def batches(examples: Sequence[Example], most: int, budget: int = 0) -> list[Sequence[Example]]:
    """Consecutive examples, at most `most` together, whose sizes as padded stay within `budget`.

    What is larger than the budget by itself is asked alone; a budget of 0 is none.
    """
    found: list[Sequence[Example]] = []
    start, largest = 0, 0
    for place, example in enumerate(examples):
        largest = max(largest, example.size)
        count = place + 1 - start
        if count > most or (budget and count > 1 and count * largest > budget):
            found.append(examples[start:place])
            start, largest = place, example.size
    return [*found, examples[start:]] if examples else []


class Examples(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled inputs; `val` is empty where the user made no split. `notes` are for the user."""

    labels: tuple[str, ...]
    train: Sequence[Example]
    val: Sequence[Example]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Arrays of the inputs that could be read, row by row; `broken` maps positions to reasons.

    Broken positions have a row too (of zeros), so that rows and inputs stay aligned.
    """

    inputs: dict[str, np.ndarray]
    broken: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A frozen network without its classifier.

    `extractor` takes the model's inputs and gives float32 [batch, width]; `network` is what
    `network(bundle)` needs to build it again; `source` tells where the weights came from, `files`
    go into the bundle for `load`, `notes` to the user.
    """

    extractor: torch.nn.Module
    width: int
    network: dict[str, Any]
    preprocess: dict[str, Any]
    source: str
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Decisions:
    """order: int64 [batch, labels], likeliest first; probabilities: float64, in that order."""

    order: np.ndarray
    probabilities: np.ndarray

    def by_label(self) -> np.ndarray:
        """Probabilities in the order of the labels: float64 [batch, labels]."""
        found = np.empty_like(self.probabilities)
        np.put_along_axis(found, self.order, self.probabilities, axis=1)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of decisions against the truth; the arrays count over labels.

    `calibration_error` is the expected calibration error, `top5` None for five labels or fewer.
    """

    accuracy: float
    macro_f1: float
    precision: np.ndarray
    recall: np.ndarray
    confusion: np.ndarray
    calibration_error: float
    top5: float | None


class Scorer(Protocol):
    """Counts batch by batch, so that no answer need be kept."""

    def update(self, truth: np.ndarray, decisions: Decisions) -> None:
        """Count a batch; truth: int64 [batch]."""

    def scores(self) -> Scores:
        """Of all that was counted."""
