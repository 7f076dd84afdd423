"""A folder that `save_pretrained` wrote: what lies in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlexport.bundle import Raw
from tlexport.errors import DataError, OptionError
from tlexport.files import is_file, sha256_of_json

WORDS = 24
"""Words of a drawn text at most."""

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its resampling filters, as preprocessor_config.json has them."""

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def config(folder: Path, *, trust: bool) -> dict[str, Any]:
    """config.json of a folder whose weights are safetensors.

    Raises:
        OptionError: it is no such folder, or it needs code of its own and `trust` is false.
        DataError: its weights are in another format.
    """
    if not folder.is_dir() or not is_file(folder / "config.json"):
        raise OptionError(
            "--huggingface FOLDER, which `save_pretrained` wrote",
            got=f"no config.json in {str(folder)!r}",
            fix="name a local folder with config.json and model.safetensors; nothing is downloaded",
        )
    found = read(folder / "config.json")
    if found.get("auto_map") and not trust:
        raise OptionError(
            "a model of transformers itself",
            got=f"one that runs code of its own, {', '.join(map(str, found['auto_map'].values()))}",
            fix="read those files in the folder, then pass --trust-remote-code",
        )
    if not any(folder.glob("*.safetensors")):
        there = [name for name in PICKLES if is_file(folder / name)]
        raise DataError(
            f"model.safetensors in {str(folder)!r}",
            got=f"{there[0]}, which is read by unpickling" if there else "no weights",
            fix="save it again with model.save_pretrained(FOLDER), which writes safetensors",
        )
    return found


def read(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"JSON in {path.name!r}", got=str(error), fix="save the model again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"a JSON object in {path.name!r}", got=str(found)[:60], fix="save it again")
    return found


def labels(found: dict[str, Any], count: int) -> tuple[str, ...]:
    """id2label in order."""
    named = {int(key): str(value) for key, value in (found.get("id2label") or {}).items()}
    if sorted(named) != list(range(count)):
        return tuple(f"LABEL_{number}" for number in range(count))
    return tuple(named[number] for number in range(count))


def texts(files: Mapping[str, bytes], count: int, rng: np.random.Generator) -> list[Raw]:
    """Texts of words out of the tokenizer's own vocabulary, of any length, all different."""
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    pieces = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]
    words = sorted({word for piece in pieces if (word := piece.strip("#▁Ġ_")).isalnum()})
    found = []
    for number in range(count):
        chosen = rng.choice(words or ["text"], int(rng.integers(1, WORDS)))
        text = " ".join([*map(str, chosen), str(number)])
        found.append(Raw(name=f"drawn-{number}.txt", content=text.encode()))
    return found


def pixels(folder: Path) -> dict[str, Any] | None:
    """preprocessor_config.json as `preprocess/image.py` wants it; None where there is none.

    Raises:
        DataError: it does what that file cannot.
    """
    path = folder / "preprocessor_config.json"
    if not is_file(path):
        return None
    found = read(path)
    resize, crop, mode = _geometry(found, path)
    factor = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    normal = bool(found.get("do_normalize", True))
    mean = found.get("image_mean") or [0.5] * 3 if normal else [0.0] * 3
    std = found.get("image_std") or [0.5] * 3 if normal else [1.0] * 3
    if len(mean) != 3 or len(std) != 3:
        raise _cannot(path, f"mean and deviation of {len(mean)} channels")
    scale = 255 * factor  # of values scaled to 0 .. 1, as the graph wants them
    return {
        "size": crop,
        "resize": resize,
        "mode": mode,
        "interpolation": FILTERS.get(int(found.get("resample", 2)), "bilinear"),
        "fill": [round(255 * value / scale) for value in mean],
        "background": [255, 255, 255],
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
    }


def _geometry(found: dict[str, Any], path: Path) -> tuple[list[int], list[int], str]:
    """Resize to, size after the crop, mode."""
    size = found.get("size", 224)
    size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    crop = found.get("crop_size") or {}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop)
    if "crop_pct" in found and "shortest_edge" in size:  # ConvNeXt's own rule
        edge = int(size["shortest_edge"])
        if edge >= 384:
            return [edge, edge], [edge, edge], "squash"
        wide = int(edge / float(found["crop_pct"] or 224 / 256))
        return [wide, wide], [edge, edge], "shortest"
    if not found.get("do_resize", True):
        raise _cannot(path, "images that are not resized, of any size")
    crops = bool(found.get("do_center_crop", False)) and {"height", "width"} <= set(crop)
    if {"height", "width"} <= set(size):
        both = [int(size["height"]), int(size["width"])]
        return both, [int(crop["height"]), int(crop["width"])] if crops else both, "squash"
    if "shortest_edge" in size and crops:
        edge = int(size["shortest_edge"])
        return [edge, edge], [int(crop["height"]), int(crop["width"])], "shortest"
    raise _cannot(path, f"size {size} without a crop: images of any shape")


def _cannot(path: Path, what: str) -> DataError:
    return DataError(
        f"preprocessing to one size in {path.name!r}",
        got=what,
        fix="set size and crop_size to numbers, as the model was trained, or import the network "
        "with --module",
    )


def code(folder: Path) -> str:
    """Digest of all Python code in a folder."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}
    return sha256_of_json({name: hashlib.sha256(b).hexdigest() for name, b in found.items()})
