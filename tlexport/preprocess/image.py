"""Image file to uint8 pixels [height, width, 3].

Self-contained: numpy and Pillow only. Training imports this file, and the served pipeline runs a
byte-for-byte copy of it, so the two cannot drift apart.

The numbers that decide what comes out (a plain dict, JSON-ready):

    size           [height, width] of the result
    resize         [height, width] to resize to before the crop
    mode           "shortest": the shorter edge becomes `resize`, the centre is cropped;
                   "squash": both edges become `resize`, the centre is cropped;
                   "border": the longer edge becomes `resize`, the rest is `fill`
    interpolation  nearest, bilinear, bicubic, lanczos, hamming or box (Pillow's, antialiased)
    fill           RGB of the border
    background     RGB that transparent pixels are laid on

The geometry is torchvision's `Resize` + `CenterCrop` on Pillow images, to the pixel; for "border",
and where `resize` is not square, it is timm's `ResizeKeepRatio`, which rounds where the other cuts.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

TAKES = "the bytes of one image file, such as JPEG or PNG"

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs (twice Pillow's own warning limit)."""

LONGEST_ASPECT = 128
"""A longer strip is cut to this aspect around its centre first: the crop would drop it anyway,
and its shorter edge scaled up would take gigabytes."""


def load(source: Path | bytes, numbers: dict[str, Any]) -> np.ndarray:
    """Decode one image: uint8 [height, width, 3], upright, sRGB as stored, no alpha.

    Raises:
        ValueError: the file is no image, cut short, or too large; the text says which.
    """
    try:
        return np.asarray(_sized(_rgb(_open(source), numbers["background"]), numbers))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own text is a memory address
        raise ValueError("no image in a format that can be read") from error
    except Exception as error:  # decoders raise anything on damaged bytes: struct.error, KeyError
        raise ValueError(str(error) or type(error).__name__) from error


def arrays(
    sources: Sequence[Any],
    numbers: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Decode images side by side (sources: bytes, or paths).

    Returns:
        "images", uint8 [batch, height, width, 3], zeros for one that cannot be read; and why, by
        its place.
    """
    pixels = np.zeros((len(sources), *numbers["size"], 3), dtype=np.uint8)
    broken: dict[int, str] = {}

    def decode(row: int) -> None:
        try:
            pixels[row] = load(sources[row], numbers)
        except ValueError as error:
            broken[row] = str(error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(len(sources))))
    return {"images": pixels}, dict(sorted(broken.items()))


def suffixes() -> set[str]:
    """File name endings, in lower case, of the formats that can be read."""
    return {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}


def _open(source: Path | bytes) -> Image.Image:
    stream = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
    image = Image.open(stream)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
    image.load()
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, background: list[int]) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit scaled to 8, palettes looked up, alpha laid on background."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("PA", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "RGBa"):
        image = image.convert("RGBA")
        base = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(base, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _sized(image: Image.Image, numbers: dict[str, Any]) -> Image.Image:
    mode, (tall, wide) = numbers["mode"], numbers["resize"]
    filter_ = Image.Resampling[numbers["interpolation"].upper()]
    if mode == "shortest":
        image = _cut_strip(image)
    width, height = image.size
    if mode == "squash":
        target = (wide, tall)
    elif mode == "shortest" and tall == wide:
        target = width * tall // min(width, height), height * tall // min(width, height)
    else:
        ratios = (height / tall, width / wide)
        ratio = max(ratios) if mode == "border" else min(ratios)
        target = max(1, round(width / ratio)), max(1, round(height / ratio))
    if target != image.size:
        image = image.resize(target, filter_)
    fill = tuple(numbers["fill"]) if mode == "border" else (0, 0, 0)
    return _centre(image, numbers["size"], fill)


def _cut_strip(image: Image.Image) -> Image.Image:
    width, height = image.size
    if max(width, height) <= LONGEST_ASPECT * min(width, height):
        return image
    cut = min(width, LONGEST_ASPECT * height), min(height, LONGEST_ASPECT * width)
    return _centre(image, [cut[1], cut[0]], (0, 0, 0))


def _centre(image: Image.Image, size: list[int], fill: tuple[int, ...]) -> Image.Image:
    """Crop around the centre; where the image is smaller, pad with `fill`."""
    height, width = size
    if image.width < width or image.height < height:
        left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
        canvas = (max(width, image.width), max(height, image.height))
        padded = Image.new("RGB", canvas, fill)
        padded.paste(image, (left, top))
        image = padded
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
