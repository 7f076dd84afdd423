"""One row of features per clip, from a row per frame."""

from __future__ import annotations

import torch


class SegmentPool(torch.nn.Module):
    """The mean of each of `segments` equal parts of the valid frames, side by side.

    Part k of L frames goes from floor(k L / segments) to ceil((k + 1) L / segments), the rule of
    `torch.nn.AdaptiveAvgPool1d`: none is empty, neighbours may share a frame.
    """

    def __init__(self, segments: int = 5) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """float32 [batch, frames, width], bool [batch, frames] -> [batch, segments * width]."""
        length = valid.long().sum(dim=1, keepdim=True)
        part = torch.arange(self.segments, device=hidden.device)
        start = (part * length).div(self.segments, rounding_mode="floor")
        end = ((part + 1) * length + self.segments - 1).div(self.segments, rounding_mode="floor")
        time = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (time >= start[:, :, None]) & (time < end[:, :, None])
        weights = inside.to(hidden.dtype) / (end - start)[:, :, None]
        return (weights @ hidden).flatten(1)


class MeanPool(SegmentPool):
    """The mean of the valid frames: [batch, frames, width] -> [batch, width]."""

    def __init__(self) -> None:
        super().__init__(segments=1)
