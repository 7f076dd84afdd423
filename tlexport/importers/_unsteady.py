"""Which part of a network answers the same question otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tlexport.importers._flat import tensor_of
from tlexport.spec import Tensors

CLOSE = 1e-4
"""As a share of the largest value: more than what another batch size changes by rounding."""


class _Call(NamedTuple):
    """A part that was called: what its first row was given, and what it answered."""

    path: str
    given: list[torch.Tensor]
    answered: list[torch.Tensor]


def blame(network: torch.nn.Module, first: Tensors, second: Tensors) -> str:
    """The first part that answers two questions, whose first rows are the same, otherwise.

    Told as ", first in PATH (Type)"; "" where none is found.
    """
    pairs = zip(_calls(network, first), _calls(network, second), strict=False)
    for one, other in pairs:
        if one.path != other.path:
            break
        if _alike(one.given, other.given) and not _alike(one.answered, other.answered):
            part = network.get_submodule(one.path) if one.path else network
            shown = one.path.removeprefix("module").removeprefix(".") or "its own forward()"
            return f", first in {shown} ({type(part).__name__})"
    return ""


def _calls(network: torch.nn.Module, inputs: Tensors) -> list[_Call]:
    """Every part in the order in which it was done; parts of parts come before them."""
    found: list[_Call] = []
    rows = len(next(iter(inputs.values())))

    def hook(path: str) -> Any:
        def note(part: torch.nn.Module, args: Any, answer: Any) -> None:
            found.append(_Call(path, _rows(args, rows), _rows(answer, rows)))

        return note

    hooks = [part.register_forward_hook(hook(path)) for path, part in network.named_modules()]
    try:
        with torch.inference_mode():
            network(*map(tensor_of, inputs.values()))
    finally:
        for each in hooks:
            each.remove()
    return found


def _rows(value: Any, batch: int) -> list[torch.Tensor]:
    """The first row of every tensor that has a row per row of the inputs."""
    if isinstance(value, torch.Tensor):
        return [value[0].clone()] if value.ndim and len(value) == batch else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [row for item in value for row in _rows(item, batch)]
    return []


def _alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape
        and bool(((a.double() - b.double()).abs() <= CLOSE * a.double().abs().max()).all())
        for a, b in zip(one, other, strict=True)
        if a.numel()
    )
