"""What all speech networks of `_speech.py` are."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


class Speech(torch.nn.Module):
    """A speech network; `network` is the library's own module, under its names of weights."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network: Any = network

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the head of `_speech.py`."""
        raise NotImplementedError


def clip(samples: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with nothing behind them but zeros, and how many there are, int64 [batch]."""
    if mask is None:
        return samples, torch.ones_like(samples, dtype=torch.long).sum(dim=1)
    return torch.where(mask, samples, 0.0), mask.long().sum(dim=1)


def first(lengths: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bool [batch, time]: true before `lengths`, time as in the last axis of `like`."""
    return torch.arange(like.shape[-1], device=like.device) < lengths[:, None]
