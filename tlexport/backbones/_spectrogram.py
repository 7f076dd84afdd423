"""Log-mel spectrograms as layers of a network.

They are the feature extractors of the library, computed in the graph: framing, window, offset,
pre-emphasis and Fourier transform are linear, so each frame is multiplied with one matrix, made in
float64 once. No complex numbers, no loop, and a matrix product instead of a convolution, because
the latter is done in TF32 on a GPU, which would drown the quiet bands.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

FRAME, HOP = 400, 160
"""25 ms and 10 ms at 16 kHz: what both Whisper and AST were made for."""

FOURIER = 512
"""Points of AST's transform: the frame, and zeros up to a power of two."""

RATE = 16_000
WHISPER_FLOOR = 1e-10
KALDI_FLOOR = 1.192092955078125e-07
"""The smallest energy whose logarithm is taken: 2**-23 in Kaldi, the eps of float32."""

PREEMPHASIS = 0.97
DYNAMIC_RANGE = 8.0
"""Powers of ten below the loudest band at which Whisper cuts off."""


def fixed(samples: torch.Tensor, window: int) -> torch.Tensor:
    """float32 [batch, samples] -> [batch, window]: what is longer is cut, zeros follow the rest."""
    return functional.pad(samples, (0, window))[:, :window]


class Energies(torch.nn.Module):
    """Energy in each mel band of each frame: float32 [batch, samples] -> [batch, frames, bands].

    `basis` is complex128 [frame, bins], `filters` float64 [bins, bands]. The samples are as many
    as the frames need, and known while tracing.
    """

    def __init__(self, basis: np.ndarray, filters: np.ndarray) -> None:
        super().__init__()
        both = np.concatenate([basis.real, basis.imag], axis=1).astype(np.float32)
        self.basis: torch.Tensor
        self.filters: torch.Tensor
        self.register_buffer("basis", torch.from_numpy(both), persistent=False)
        as_float = torch.from_numpy(filters.astype(np.float32))
        self.register_buffer("filters", as_float, persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """|frame x basis|^2 x filters."""
        real, imaginary = (_frames(samples) @ self.basis).chunk(2, dim=2)
        return (real.square() + imaginary.square()) @ self.filters


def _frames(samples: torch.Tensor) -> torch.Tensor:
    """float32 [batch, samples] -> [batch, frames, FRAME], HOP apart.

    A frame is five blocks of 80 samples, and the next one begins two blocks later.
    """
    block = math.gcd(FRAME, HOP)
    blocks = samples.view(samples.shape[0], -1, block)
    last = blocks.shape[1] - FRAME // block
    parts = [blocks[:, at : at + last + 1 : HOP // block] for at in range(FRAME // block)]
    return torch.cat(parts, dim=2)


class WhisperSpectrogram(torch.nn.Module):
    """What `WhisperFeatureExtractor` answers: samples -> float32 [batch, bands, window / HOP].

    `window` is in samples, a multiple of HOP; for it to be 30 s, as there, is usual but not needed.
    """

    def __init__(self, bands: int, window: int) -> None:
        super().__init__()
        self.window = window
        hann = np.hanning(FRAME + 1)[:-1]
        filters = _mel(FRAME // 2 + 1, bands, 0.0, norm="slaney", mel_scale="slaney")
        self.energies = Energies(hann[:, None] * _fourier(FRAME), filters)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """float32 [batch, samples], any number; zeros or a cut bring them to the window.

        Frames are centred on their time, with the edges mirrored; the last is left out, as in the
        library. Each clip's bands are cut off at 8 decades below its own loudest.
        """
        clip = fixed(samples, self.window)[:, None]
        mirrored = functional.pad(clip, (FRAME // 2, FRAME // 2), mode="reflect")[:, 0]
        decades = self.energies(mirrored[:, :-HOP]).clamp(min=WHISPER_FLOOR).log10()
        loudest = decades.amax(dim=(1, 2), keepdim=True)
        levels = torch.maximum(decades, loudest - DYNAMIC_RANGE)
        return ((levels + 4.0) / 4.0).transpose(1, 2)


class KaldiSpectrogram(torch.nn.Module):
    """What `ASTFeatureExtractor` answers: samples -> float32 [batch, frames, bands].

    `statistics` are the mean and deviation it normalises with, None where it does not.
    """

    def __init__(self, bands: int, frames: int, statistics: tuple[float, float] | None) -> None:
        super().__init__()
        self.frames = frames
        self.window = (frames - 1) * HOP + FRAME
        self.mean, self.deviation = statistics or (0.0, 0.5)
        filters = _mel(
            FOURIER // 2 + 1, bands, 20.0, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        self.energies = Energies(_conditioned() @ _fourier(FOURIER), filters)

    def forward(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Samples float32 [batch, samples], of which the first int64 lengths [batch] are real.

        Frames that do not lie within the clip are zero before they are normalised, not silent:
        the library pads the spectrogram, not the sound.
        """
        levels = self.energies(fixed(samples, self.window)).clamp(min=KALDI_FLOOR).log()
        whole = (lengths - FRAME).div(HOP, rounding_mode="floor") + 1
        within = torch.arange(self.frames, device=samples.device) < whole[:, None]
        levels = torch.where(within[:, :, None], levels, 0.0)
        return (levels - self.mean) / (2 * self.deviation)


def _mel(bins: int, bands: int, lowest: float, **shape: Any) -> np.ndarray:
    """The library's triangular filters up to half the rate: float64 [bins, bands]."""
    with warnings.catch_warnings():  # that AST's lowest bands hold no bin is as it was trained
        warnings.simplefilter("ignore", UserWarning)
        filters: np.ndarray = mel_filter_bank(
            num_frequency_bins=bins,
            num_mel_filters=bands,
            min_frequency=lowest,
            max_frequency=RATE / 2,
            sampling_rate=RATE,
            **shape,
        )
    return filters


def _fourier(size: int) -> np.ndarray:
    """The real signal's discrete Fourier transform: complex128 [FRAME, size / 2 + 1]."""
    times, bins = np.arange(FRAME)[:, None], np.arange(size // 2 + 1)[None]
    basis: np.ndarray = np.exp(-2j * np.pi * (times * bins % size) / size)
    return basis


def _conditioned() -> np.ndarray:
    """Kaldi's conditioning of a frame, as a matrix float64 [FRAME, FRAME] to its right.

    The mean is taken off, then each sample loses 0.97 of the one before, then comes a symmetric
    Hann window, which is zero at the first. Source: Kaldi's feature-window.cc, ProcessWindow.
    """
    centred = np.eye(FRAME) - 1 / FRAME
    emphasised = np.eye(FRAME) - PREEMPHASIS * np.eye(FRAME, k=1)
    return centred @ emphasised * np.hanning(FRAME)
