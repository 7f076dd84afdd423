"""Inputs of which no change is known that keeps their label."""

from __future__ import annotations

import torch

from tlexport.errors import OptionError


def augment(
    inputs: dict[str, torch.Tensor], strength: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The inputs as they are.

    Raises:
        OptionError: a strength above 0 is asked for.
    """
    if strength:
        raise OptionError(
            "--augment for images or clips",
            got=f"{strength:g} for {', '.join(inputs)}",
            fix="leave it out: a word or a number changed may turn what the whole means",
        )
    return inputs
