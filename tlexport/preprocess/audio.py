"""Audio file to float32 samples [samples], one channel.

Self-contained: numpy, soundfile and soxr only. Training imports this file, and the served pipeline
runs a byte-for-byte copy of it, so the two cannot drift apart.

The numbers that decide what comes out (a plain dict, JSON-ready):

    rate      samples per second of the result; any other rate is resampled (soxr, high quality)
    longest   samples at most: what follows is cut off, and not even decoded
    shortest  samples at least: zeros are put behind shorter clips
    mask      whether the network wants to be told which samples of a batch are padding

Channels are averaged. What lies beyond -1 .. 1, as resampling and lossy decoders leave it behind
a clipped peak, is clipped, as a sound card would.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

TAKES = "the bytes of one sound file, such as WAV, FLAC or MP3"

RATES = (100, 1_000_000)
"""Hertz. A damaged header may say anything, and resampling from 1 Hz would take gigabytes."""

LOUDEST = 16.0
"""24 dB above full scale is no overshoot: these are samples of another unit, such as -32768 ..
32767 in a floating-point file."""

BLOCK = 65_536
"""Frames decoded at once, before the channels are averaged: bounds what a file of many channels
can take."""

MARGIN = 1_024
"""Samples (of the lower rate) decoded beyond a cut, so that the resampler's filter meets there
what it would meet in the whole file; it reaches some 200."""

STREAMED = 0x7F000000
"""Programs that write WAV into a pipe announce this many bytes or more, since they cannot know."""


def load(source: Path | bytes, numbers: dict[str, Any]) -> np.ndarray:
    """Decode one clip: float32 [samples], -1 .. 1, `shortest` to `longest` samples.

    Raises:
        ValueError: the file is no audio, cut short, empty or damaged; the text says which.
    """
    try:
        return _sized(*_mono(source, numbers), numbers)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise ValueError(_reason(error)) from error


def batch(clips: Sequence[np.ndarray], numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Put clips under each other, zeros behind the shorter ones.

    Returns:
        "samples", float32 [batch, samples], as long as the longest; and where `numbers` want a
        mask, "attention_mask", bool [batch, samples], true for what is no padding.
    """
    lengths = np.array([clip.size for clip in clips])
    samples = np.zeros((len(clips), int(lengths.max(initial=0))), dtype=np.float32)
    for row, clip in enumerate(clips):
        samples[row, : clip.size] = clip
    if not numbers["mask"]:
        return {"samples": samples}
    return {"samples": samples, "attention_mask": np.arange(samples.shape[1]) < lengths[:, None]}


def arrays(
    sources: Sequence[Any],
    numbers: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Decode clips side by side (sources: bytes, or paths) and put them under each other.

    Returns:
        What `batch` gives, silence for a clip that cannot be read; and why, by its place.
    """
    silence = np.zeros(numbers["shortest"], dtype=np.float32)
    broken: dict[int, str] = {}

    def decode(row: int) -> np.ndarray:
        try:
            return load(sources[row], numbers)
        except (ValueError, OSError) as error:
            broken[row] = str(error)
            return silence

    with ThreadPoolExecutor(threads) as pool:
        clips = list(pool.map(decode, range(len(sources))))
    return batch(clips, numbers), dict(sorted(broken.items()))


def length(source: Path | bytes, numbers: dict[str, Any]) -> int:
    """About how many samples `load` will answer, from the file's header alone.

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        found = soundfile.info(io.BytesIO(_bytes(source)))
    except Exception as error:
        raise ValueError(_reason(error)) from error
    samples = round(found.frames * numbers["rate"] / found.samplerate)
    return int(min(max(samples, numbers["shortest"]), numbers["longest"]))


def suffixes() -> set[str]:
    """File name endings, in lower case, of the formats that can be read."""
    return {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"}


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _reason(error: Exception) -> str:
    if not isinstance(error, soundfile.LibsndfileError):
        return str(error) or type(error).__name__
    text = error.error_string.removeprefix("Error : ").rstrip(".")  # its `str` has a memory address
    if text == "Format not recognised":
        return "no audio in a format that can be read"
    return f"damaged audio: {text}"


def _open(data: bytes) -> soundfile.SoundFile:
    """The decoder of a file, once its own counts have been held against its size."""
    if not data:
        raise ValueError("an empty file")
    announced = _announced(data)
    if announced > len(data):
        raise ValueError(f"cut short: {announced} bytes are announced, {len(data)} are there")
    file = soundfile.SoundFile(io.BytesIO(data))
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise ValueError(f"a rate of {file.samplerate} Hz, {RATES[0]} to {RATES[1]} are read")
    if file.format == "FLAC":
        if file.frames > 2**48:
            raise ValueError("a FLAC stream of unknown length, as pipes write it: encode it again")
        try:
            file.seek(max(0, file.frames - 1))
            file.seek(0)
        except soundfile.LibsndfileError as error:
            text = f"cut short or damaged: not all of {file.frames} announced frames can be read"
            raise ValueError(text) from error
    return file


def _mono(source: Path | bytes, numbers: dict[str, Any]) -> tuple[np.ndarray, int]:
    """The channels' mean, float32 [frames], no more than `longest` needs; and its rate."""
    with _open(_bytes(source)) as file:
        ratio = file.samplerate / numbers["rate"]
        needed = math.ceil(numbers["longest"] * ratio) + math.ceil(MARGIN * max(1.0, ratio))
        needed = min(needed, file.frames)
        parts, rest = [np.zeros(0, np.float32)], needed
        while rest > 0:
            block = file.read(min(BLOCK, rest), dtype="float32", always_2d=True)
            if not len(block):
                break
            parts.append(block.mean(axis=1))
            rest -= len(block)
        mono = np.concatenate(parts)
        if rest > 0 and file.format != "MP3":  # without an index, it only estimates
            raise ValueError(f"cut short: {needed} frames should be there, {mono.size} can be read")
        return mono, file.samplerate


def _sized(mono: np.ndarray, rate: int, numbers: dict[str, Any]) -> np.ndarray:
    """Checked, resampled, clipped, cut and padded: float32 [samples]."""
    if mono.size == 0:
        raise ValueError("no samples")
    if not np.isfinite(mono).all():
        raise ValueError("samples that are not finite (NaN or infinite)")
    peak = float(np.abs(mono).max())
    if peak > LOUDEST:
        raise ValueError(f"samples up to {peak:.3g}, where floating-point audio is -1 .. 1")
    if rate != numbers["rate"]:
        mono = soxr.resample(mono, rate, numbers["rate"], quality="HQ")
    clip = np.clip(mono[: numbers["longest"]], -1.0, 1.0)
    return np.pad(clip, (0, max(0, numbers["shortest"] - clip.size)))


def _announced(data: bytes) -> int:
    """Bytes that the file must have by its own account; 0 where it gives none.

    The decoder reads what is left of a cut file without a word, but for FLAC.
    """
    if data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE":
        return _announced_wav(data)
    if data[:4] == b"OggS":
        return _announced_ogg(data)
    return _announced_mp3(data)


def _announced_wav(data: bytes) -> int:
    """Where the `data` chunk ends."""
    order = "<" if data[:4] == b"RIFF" else ">"
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, place)
        if name == b"data":
            return 0 if size >= STREAMED else place + 8 + int(size)
        place += 8 + size + size % 2
    return place + 8 if place > len(data) else 0


def _announced_ogg(data: bytes) -> int:
    """Where the last page ends (RFC 3533, section 6: 27 bytes, segment lengths, segments)."""
    place = data.rfind(b"OggS")
    if place + 27 > len(data):
        return place + 27
    segments = data[place + 27 : place + 27 + data[place + 26]]
    return place + 27 + data[place + 26] + sum(segments)


def _announced_mp3(data: bytes) -> int:
    """What the index in the first frame says, where there is one (Xing or Info tag)."""
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:
        start = 10 + sum((data[6 + at] & 127) << (21 - 7 * at) for at in range(4))
    head = data[start : start + 200]
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 4 or len(head) < place + 16 or b"\xff" not in head[:place]:
        return start if start > len(data) else 0
    flags = int.from_bytes(head[place + 4 : place + 8], "big")
    if not flags & 2:
        return 0
    at = place + 8 + 4 * (flags & 1)
    return start + max(0, place - 36) + int.from_bytes(head[at : at + 4], "big")
