"""What a model is for: one file per task.

A file of this folder offers

    read(root, known=()) -> Examples                     the user's labelled examples
    load(paths, preprocess) -> Loaded                    raw files to arrays, broken ones told apart
    learner(backbone, weights, seed) -> Learner          a frozen network and its preprocessing
    spec(name, labels, learner) -> ModelSpec             what the finished model takes and answers
    assemble(learner, head) -> torch.nn.Module           extractor and head as one network
    network(bundle) -> torch.nn.Module                   the same, built again from a bundle
    decide(spec, outputs) -> Decisions                   what the outputs say of each row
    score(spec, truth, decisions) -> Scores              how often that is right

The network takes the tensors of `spec.inputs` in order and answers those of `spec.outputs`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled file: `label` counts into `Examples.labels`, `digest` is of its content."""

    path: Path
    label: int
    digest: str


class Examples(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled files; `val` is empty where the user made no split. `notes` are for the user."""

    labels: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Arrays of the files that could be read, row by row; `broken` maps positions to reasons.

    Broken positions have a row too (of zeros), so that rows and files stay aligned.
    """

    inputs: dict[str, np.ndarray]
    broken: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A frozen network without its classifier.

    `extractor` takes the model's inputs and gives float32 [batch, width]; `network` is what
    `network(bundle)` needs to build it again; `source` tells where the weights came from.
    """

    extractor: torch.nn.Module
    width: int
    network: dict[str, Any]
    preprocess: dict[str, Any]
    source: str


@dataclasses.dataclass(frozen=True)
class Decisions:
    """order: int64 [batch, labels], likeliest first; probabilities: float64, in that order."""

    order: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of decisions against the truth; the arrays count over labels."""

    accuracy: float
    macro_f1: float
    precision: np.ndarray
    recall: np.ndarray
    confusion: np.ndarray
