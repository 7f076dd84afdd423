"""Asks the frozen network by whatever is fastest and equal."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from tlexport.environment import cores, launch
from tlexport.errors import TlexportError
from tlexport.spec import Tensors

Forward = Callable[[Tensors], np.ndarray]
"""Inputs by name, in the network's order -> features: float32 [batch, width]."""

Faster = Callable[[Tensors], tuple[str, Forward]]
"""Sample inputs -> the name of another runtime and the same network there; may raise
TlexportError where that runtime cannot have it."""

WORTH_S = 30.0
"""Seconds of work ahead from which another runtime is tried: an export takes about 5."""

ROUNDING = 1e-4
"""How far, of the largest feature, two runtimes may differ: both compute in fp32, and the batch an
input is in already moves its features by as much."""

WARM = 2
"""Batches that set up kernels and memory, and tell nothing of the time of the others."""

ORIGINAL = "PyTorch"


def device() -> str:
    """Where the network runs: this process's own GPU, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{launch().local_rank % torch.cuda.device_count()}"


def eager(extractor: torch.nn.Module, *, half: bool = False) -> Forward:
    """The network in PyTorch; with `half` its products are of bfloat16.

    Channels last is the faster layout for convolutions.
    """
    place = device()
    torch.set_num_threads(cores())
    extractor = extractor.to(place)
    if all(tensor.ndim < 5 for tensor in extractor.parameters()):  # 3-D kernels cannot be
        extractor = extractor.to(memory_format=torch.channels_last)

    def forward(inputs: Tensors) -> np.ndarray:
        kind = place.partition(":")[0]
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
            tensors = [torch.from_numpy(array).to(place) for array in inputs.values()]
            features: np.ndarray = extractor(*tensors).float().cpu().numpy()
        return features

    return forward


class Quickest:
    """PyTorch at first; then `faster`, if `worth_s` of work are ahead and it is proven.

    Proven is: on the batch at hand and on another one that is loaded when it comes to that, it
    answers what PyTorch does but for rounding, and takes less time. `used` names what answered
    last, `notes` say why another runtime was tried and left.
    """

    def __init__(self, original: Forward, faster: Faster | None, worth_s: float) -> None:
        self._original = original
        self._faster = faster
        self._worth_s = worth_s
        self._forward = original
        self._calls = 0
        self.used = ORIGINAL
        self.notes: list[str] = []

    def __call__(self, inputs: Tensors, ahead: int, other: Callable[[], Tensors]) -> np.ndarray:
        """Features of a batch, float32 [batch, width]; `ahead` batches like it are to follow."""
        took, features = _timed(self._forward, inputs)
        self._calls += 1
        if self._faster is not None and self._calls > WARM and took * ahead >= self._worth_s:
            faster, self._faster = self._faster, None  # once is enough, whatever comes of it
            try:
                self._try(faster, inputs, other())
            except TlexportError as error:
                self.notes.append(f"features came from {ORIGINAL}: {error}")
        return features

    def _try(self, faster: Faster, inputs: Tensors, other: Tensors) -> None:
        name, candidate = faster(inputs)
        candidate(inputs)  # the first call sets up memory
        gap, took = 0.0, {ORIGINAL: 0.0, name: 0.0}
        for asked in (inputs, other):
            seconds, features = _timed(self._original, asked)
            took[ORIGINAL] += seconds
            seconds, answer = _timed(candidate, asked)
            took[name] += seconds
            gap = max(gap, _gap(features, answer))
        if gap > ROUNDING:
            self.notes.append(
                f"features came from {ORIGINAL}: those of {name} differ by {gap:.1e} of the "
                f"largest, {ROUNDING:.0e} at most would be rounding"
            )
        elif took[name] < took[ORIGINAL]:
            self._forward, self.used = candidate, name


def _timed(forward: Forward, inputs: Tensors) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    features = forward(inputs)
    return time.perf_counter() - began, features


def _gap(original: np.ndarray, answer: np.ndarray) -> float:
    """The largest difference as a share of the largest feature; infinite where it is no number."""
    if answer.shape != original.shape or not (np.isfinite(answer) & np.isfinite(original)).all():
        return float("inf")
    return float(np.abs(answer - original).max() / max(float(np.abs(original).max()), 1e-30))
