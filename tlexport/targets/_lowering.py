"""What every lower precision is made of, and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx

from tlexport.progress import Progress, silent
from tlexport.spec import Tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What to lower, and by which samples.

    `source` is the fp32 file, `samples` are inputs of one row each that calibrate, `golden` inputs
    by which errors are measured, and `work` is a folder for files of no one else. With `io` "fp16"
    inputs and outputs are float16 where they were float32.
    """

    source: Path
    samples: Sequence[Tensors]
    golden: Sequence[Tensors]
    work: Path
    calibration: str = "auto"
    quantization: str = "auto"
    io: Literal["fp32", "fp16"] = "fp32"
    progress: Progress = silent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """A model of a lower precision.

    `left` maps the names of nodes that stayed in fp32 to the reason, `nodes` counts those that
    could have been lowered, and `notes` are for the user.
    """

    model: onnx.ModelProto
    nodes: int
    left: dict[str, str]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Lowering(Protocol):
    """A model on its way to a lower precision. `forms` are the ways there, the best first."""

    forms: tuple[str, ...]

    def make(self, form: str, left: Collection[str] = ()) -> Lowered:
        """The model in a form, with the nodes `left` in fp32."""

    def dearest(self, form: str) -> Sequence[str]:
        """Nodes that can be left in fp32, the one that costs most first; empty: none can."""


def error_of(found: Sequence[Tensors], wanted: Sequence[Tensors]) -> float:
    """Distance of answers, as a share of the wanted ones' size: the worst output's.

    The same infinity in both is no difference; NaN or another infinity makes it infinite.
    """
    worst = 0.0
    for name in wanted[0]:
        if wanted[0][name].dtype.kind != "f":
            continue
        gap = size = 0.0
        for ours, theirs in zip(found, wanted, strict=True):
            got, want = _finite(ours[name], theirs[name])
            if not np.isfinite(got).all():
                return float("inf")
            gap += float(np.square(got - want).sum())
            size += float(np.square(want).sum())
        worst = max(worst, (gap / size) ** 0.5 if size else (gap > 0) * float("inf"))
    return worst


def _finite(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64; where both are the same infinity, or NaN, zero in both."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = ~np.isfinite(want) & ((got == want) | (np.isnan(got) & np.isnan(want)))
    lost = ~np.isfinite(want) & ~same
    got = np.where(same, 0.0, np.where(lost, np.inf, got))
    return got, np.where(np.isfinite(want), want, 0.0)
