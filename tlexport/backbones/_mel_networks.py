"""Whisper's encoder and AST: networks of a spectrogram."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tlexport.backbones._spectrogram import FRAME, HOP, KaldiSpectrogram, WhisperSpectrogram
from tlexport.backbones._speech_network import Speech, clip, first

WHISPER_STEP = 2 * HOP
"""Samples per frame of the Whisper encoder: its second convolution takes every other."""

TRIM_DB = 35.0
"""Decibels. Speech, its plosives and its last breath, lies above; a quiet room lies below."""


class Whisper(Speech):
    """Whisper's encoder on a window of its own choice: it takes the first of its positions."""

    def __init__(
        self, network: PreTrainedModel, *, window: int, trim_db: float | None = TRIM_DB
    ) -> None:
        super().__init__(network)
        self.frames = window // WHISPER_STEP
        self.trim = Trim(window, trim_db) if trim_db is not None else None
        self.spectrogram = WhisperSpectrogram(network.config.num_mel_bins, window)
        self.network.embed_positions.__class__ = _Positions
        self.network.embed_positions.used = self.frames
        self.network.config = copy.copy(network.config)
        self.network.config.max_source_positions = self.frames  # it holds its input against this

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the head of `_speech.py`; no mask is needed: padding is silence, and trimmed."""
        if self.trim is None:
            hidden = self.network(self.spectrogram(samples)).last_hidden_state
            return hidden, torch.ones_like(hidden[:, :, 0], dtype=torch.bool)
        trimmed, frames = self.trim(samples)
        hidden = self.network(self.spectrogram(trimmed)).last_hidden_state
        valid = first(frames, hidden[:, :, 0])
        return torch.where(valid[:, :, None], hidden, 0.0), valid


class Trim(torch.nn.Module):
    """Cuts what is quiet off both ends of a clip.

    A clip lasts from its first to its last 20 ms whose energy is at most `trim_db` below that of
    its loudest 20 ms. Where a word stands in its file says nothing about the word, but much about
    who recorded it; and Whisper, which was taught with windows of 30 s, hears silence too.
    """

    def __init__(self, window: int, trim_db: float) -> None:
        super().__init__()
        self.window = window
        self.share = 10 ** (-trim_db / 10)

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [batch, samples] -> trimmed [batch, window], and frames of it, int64 [batch].

        Of a clip of zeros alone the first 20 ms are left, whatever its padding.
        """
        samples = functional.pad(samples, (0, WHISPER_STEP - 1))
        energy = functional.avg_pool1d(samples[:, None].square(), WHISPER_STEP)[:, 0]
        loud = energy >= energy.amax(dim=1, keepdim=True) * self.share
        place = torch.arange(energy.shape[1], device=samples.device, dtype=energy.dtype)
        loud = loud & ((energy > 0) | (place == 0))
        start = torch.where(loud, place, float("inf")).amin(dim=1).long()
        end = torch.where(loud, place, -1.0).amax(dim=1).long() + 1
        inside = torch.arange(self.window, device=samples.device)
        source = functional.pad(samples, (0, self.window))
        moved = source.gather(1, start[:, None] * WHISPER_STEP + inside)
        count = (end - start).clamp(max=self.window // WHISPER_STEP)
        return torch.where(inside < count[:, None] * WHISPER_STEP, moved, 0.0), count


class Ast(Speech):
    """The Audio Spectrogram Transformer."""

    def __init__(self, network: PreTrainedModel, *, statistics: tuple[float, float] | None) -> None:
        super().__init__(network)
        config = network.config
        self.spectrogram = KaldiSpectrogram(config.num_mel_bins, config.max_length, statistics)

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the head of `_speech.py`."""
        samples, lengths = clip(samples, attention_mask)
        spectrogram = self.spectrogram(samples, lengths.clamp(min=FRAME))
        summary = self.network(spectrogram).pooler_output
        hidden = summary[:, None]
        return hidden, torch.ones_like(hidden[:, :, 0], dtype=torch.bool)


class _Positions(torch.nn.Embedding):
    """The first `used` of Whisper's positions, whichever are asked for."""

    used: int

    def forward(self, asked: torch.Tensor) -> torch.Tensor:
        """-> float32 [used, width]."""
        return self.weight[: self.used]
