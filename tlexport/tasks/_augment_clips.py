"""Clips heard otherwise: at other levels, in noise, gapped."""

from __future__ import annotations

import torch

GAIN_DB = 12.0
"""A clip gets louder or softer by up to this at full strength, as far as it stays within +-1."""

NOISE_DB = (10.0, 40.0)
"""White noise lies this far below the clip at full strength; proportionally weaker below it."""

GAPS = 2
"""Stretches of silence per clip, as SpecAugment masks time (Park et al., 2019)."""

GAP = 0.2
"""Longest gap at full strength, as a share of the clip."""


def augment(
    samples: torch.Tensor,
    mask: torch.Tensor | None,
    strength: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Each clip by a gain, a noise and gaps of its own; float32 [batch, samples] in -1 .. 1.

    `mask`, bool [batch, samples], is true for what is no padding; without one a clip reaches as
    far as its last sample that is not zero. Padding stays zero. `strength` 0 changes nothing.
    """
    if strength == 0:
        return samples
    count, width = samples.shape
    time = torch.arange(width)
    valid = _heard(samples) if mask is None else mask
    length = valid.sum(1, keepdim=True)
    first = valid.long().argmax(1, keepdim=True)
    draw = torch.rand(count, 2 + 2 * GAPS, generator=generator)
    gain = 10 ** ((2 * draw[:, :1] - 1) * strength * GAIN_DB / 20)
    peak = samples.abs().amax(1, keepdim=True)
    made = samples * torch.where(peak * gain > 1, torch.clamp(1 / peak, min=1), gain)
    power = made.square().masked_fill(~valid, 0).sum(1, keepdim=True) / length.clamp(min=1)
    least, most = NOISE_DB
    level = strength * 10 ** (-(least + draw[:, 1:2] * (most - least)) / 20)
    noise = torch.randn(samples.shape, generator=generator)
    made = made + noise * power.sqrt() * level
    for gap in range(GAPS):
        long = draw[:, 2 + 2 * gap, None] * strength * GAP * length
        start = first + draw[:, 3 + 2 * gap, None] * (length - long)
        made = made.masked_fill((time >= start) & (time < start + long), 0)
    return torch.where(valid, made, samples).clamp(-1, 1)


def _heard(samples: torch.Tensor) -> torch.Tensor:
    """True up to the last sample that is not zero: bool [batch, samples]."""
    return samples.ne(0).flip(1).cumsum(1).flip(1) > 0
