"""Questions at the ends of what an input may hold."""

from __future__ import annotations

import numpy as np

from tlexport.spec import ModelSpec, Probe, Tensors, TensorSpec, rows

DENORMAL = 1e-40
"""Below the smallest normal float32 (1.18e-38)."""


def extremes(spec: ModelSpec, inputs: Tensors) -> list[Probe]:
    """A golden sample with each input in turn at its lowest, its highest, zero, denormal ...

    Inputs without a declared range are asked zeros; masks (integers of 0 or 1) and text are left
    as they are: what a task knows about those is among its own probes.
    """
    probes = []
    for tensor in spec.inputs:
        sample = rows(inputs, slice(0, 1))
        for name, value in _values(tensor, sample[tensor.name]):
            filled = sample | {tensor.name: value}
            probes.append(Probe(name=f"{tensor.name} {name}", inputs=filled, extreme=True))
    return probes


def _values(tensor: TensorSpec, like: np.ndarray) -> list[tuple[str, np.ndarray]]:
    kind, legal = like.dtype.kind, tensor.legal
    if kind not in "fiu" or (kind in "iu" and (legal is None or legal == (0, 1))):
        return []
    if legal is None:
        return [("all 0", np.zeros_like(like)), ("all denormal", np.full_like(like, DENORMAL))]
    low, high = legal
    found = [(f"all {low:g}", np.full_like(like, low)), (f"all {high:g}", np.full_like(like, high))]
    if kind == "f":
        turns = np.where(np.arange(like.size).reshape(like.shape) % 2, high, low)
        found.append((f"{low:g} and {high:g} in turn", turns.astype(like.dtype)))
        if low < 0 < high:
            found.append(("all 0", np.zeros_like(like)))
        if low <= 0 < high and like.dtype == np.float32:
            found.append(("all denormal", np.full_like(like, DENORMAL)))
    return found
