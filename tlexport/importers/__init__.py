"""Models that people already have: one file per kind.

A file of this folder is called as the option that asks for it (`ImportOptions.onnx`), and offers

    read(options) -> Imported                  the model, what it takes and answers
    network(bundle) -> torch.nn.Module         the same, built again from a bundle

Code that the user did not ask for is never run: no pickle is read but with `weights_only`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tlexport.bundle import Raw
from tlexport.spec import TensorSpec

Bounds = dict[str, tuple[int, int]]
"""Smallest and largest size of a free axis, by its name."""

ANY_SIZE = (1, 2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model that somebody already has.

    `network` takes the tensors of `inputs` in order and answers those of `names`, a tuple where
    there are several; a `_flat.Flat` tells their names itself, and `names` is empty then. It is
    None where there is no network in PyTorch; `outputs` are known only then.

    `record` is what `network(bundle)` needs to build it again, plain data with "importer" in it.
    `keep` puts the weights into a bundle's folder and tells their files, the one to open first;
    without it the network's state dict is kept. `preprocess` and `files` are as a task wants
    them, `raw` draws that many legal raw inputs (a task's `load` reads them), `notes` are for the
    user.
    """

    network: torch.nn.Module | None
    inputs: tuple[TensorSpec, ...]
    record: dict[str, Any]
    source: str
    task: str = "tensors"
    names: tuple[str, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    bounds: Bounds = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    keep: Callable[[Path], tuple[str, ...]] | None = None
    raw: Callable[[int, np.random.Generator], list[Raw]] | None = None
    notes: tuple[str, ...] = ()
