"""Files of the feature cache: whole, or made again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlexport import bundle
from tlexport.errors import BundleError
from tlexport.spec import Tensors

Shard = tuple[np.ndarray, dict[int, str]]
"""Features, float32 [examples, width], and which rows are of broken files, with the reasons."""


def file_of(folder: Path, number: int) -> Path:
    """Where a shard of that number lies."""
    return folder / f"{number:05d}.safetensors"


def join(parts: Sequence[Shard]) -> Shard:
    """Shards in a row as one."""
    broken, start = {}, 0
    for values, reasons in parts:
        broken.update({start + row: reason for row, reason in reasons.items()})
        start += len(values)
    return np.concatenate([values for values, _ in parts]), broken


def read(path: Path) -> Shard | None:
    """A shard of the cache; None where there is none or it is damaged, and it is made again."""
    if not path.is_file():
        return None
    try:
        tensors = bundle.read_tensors(path)
        digest = tensors.pop("digest").tobytes()
    except (BundleError, KeyError):
        return None
    if digest != _digest(tensors):
        return None
    reasons = tensors["reasons"].tobytes().decode().split("\0") if tensors["rows"].size else []
    broken = dict(zip(tensors["rows"].tolist(), reasons, strict=True))
    return tensors["values"], broken


def write(path: Path, shard: Shard) -> None:
    """Write a shard, whole or not at all."""
    values, broken = shard
    reasons = "\0".join(reason.replace("\0", " ") for reason in broken.values()).encode()
    tensors = {
        "values": values,
        "rows": np.array(list(broken), dtype=np.int64),
        "reasons": np.frombuffer(reasons, dtype=np.uint8),
    }
    digest = np.frombuffer(_digest(tensors), dtype=np.uint8)
    bundle.write_tensors(path, {**tensors, "digest": digest})


def _digest(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    return digest.digest()
