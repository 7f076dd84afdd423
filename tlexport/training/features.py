"""Features of a frozen network, computed once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tlexport import bundle
from tlexport.environment import cores
from tlexport.errors import BundleError
from tlexport.files import sha256_of_json
from tlexport.progress import Progress
from tlexport.spec import Tensors
from tlexport.tasks import Example, Learner, Loaded, batches

VERSION = 2
"""Raise it when the same files, weights and numbers would give other features than before."""

SHARD = 256
"""Examples per file of the cache: what a killed run loses at most."""


BATCH = {"cpu": 8, "cuda": 64}
"""Default batch: on a CPU larger ones spend their time on page faults, not on arithmetic."""


@dataclasses.dataclass(frozen=True)
class Features:
    """`values`: float32 [examples, width], row i of example i; `broken` maps rows to reasons.

    `reused` counts the rows that an earlier run had left in the cache.
    """

    values: np.ndarray
    broken: dict[int, str]
    reused: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """All that decides what the features are, and where they are kept."""

    task: ModuleType
    learner: Learner
    cache: Path
    batch: int


def compute(examples: Sequence[Example], extraction: Extraction, progress: Progress) -> Features:
    """Features of the examples: from the cache where it has them, else by one forward pass.

    The cache is keyed by the digests of the files, the network's weights and the preprocessing.
    It is written shard by shard, each whole or not at all: a killed run goes on where it stopped.
    """
    # Those of a size together, so that padding is not paid for; the same order for any split.
    order = sorted(range(len(examples)), key=lambda row: _place(examples[row]))
    ordered = [examples[row] for row in order]
    key = _key(ordered, extraction)
    shards = [ordered[at : at + SHARD] for at in range(0, len(ordered), SHARD)]
    found = [_read(extraction.cache / key / f"{n:05d}.safetensors") for n in range(len(shards))]
    missing = [number for number, shard in enumerate(found) if shard is None]
    done = len(examples) - sum(len(shards[number]) for number in missing)
    reused = done
    progress("features", done, len(examples))
    size = extraction.batch or BATCH[_device()]
    budget = getattr(extraction.task, "BUDGET", 0)
    asked = [(number, part) for number in missing for part in batches(shards[number], size, budget)]
    parts: list[tuple[np.ndarray, dict[int, str]]] = []
    for place, (number, loaded) in enumerate(_loaded(asked, extraction)):
        parts.append((_forward(loaded, extraction.learner), loaded.broken))
        done += len(parts[-1][0])
        progress("features", done, len(examples))
        if place + 1 == len(asked) or asked[place + 1][0] != number:
            found[number] = _join(parts)
            _write(extraction.cache / key / f"{number:05d}.safetensors", found[number])
            parts = []
    computed, reasons = _join([shard for shard in found if shard is not None])
    values = np.empty_like(computed)
    values[order] = computed
    broken = {order[row]: reason for row, reason in reasons.items()}
    return Features(values, dict(sorted(broken.items())), reused)


def _place(example: Example) -> tuple[int, str]:
    return example.size, str(example.source)


def _key(examples: Sequence[Example], extraction: Extraction) -> str:
    return sha256_of_json(
        {
            "version": VERSION,
            "data": [example.digest for example in examples],
            "weights": digest_of_state(extraction.learner.extractor),
            "network": extraction.learner.network,
            "preprocess": extraction.learner.preprocess,
            "files": {
                name: hashlib.sha256(content).hexdigest()
                for name, content in extraction.learner.files.items()
            },
        }
    )


def digest_of_state(module: torch.nn.Module) -> str:
    """Hex SHA-256 over the names, types, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def _loaded(
    asked: Sequence[tuple[int, Sequence[Example]]], extraction: Extraction
) -> Iterator[tuple[int, Loaded]]:
    """Decode one batch ahead of the network."""

    def load(batch: Sequence[Example]) -> Loaded:
        loaded: Loaded = extraction.task.load(
            [example.source for example in batch],
            extraction.learner.preprocess,
            extraction.learner.files,
        )
        return loaded

    with ThreadPoolExecutor(max_workers=1) as ahead:
        waiting = [ahead.submit(load, batch) for _, batch in asked[:1]]
        for place, (number, _) in enumerate(asked):
            loaded = waiting.pop().result()
            if place + 1 < len(asked):
                waiting.append(ahead.submit(load, asked[place + 1][1]))
            yield number, loaded


def _forward(loaded: Loaded, learner: Learner) -> np.ndarray:
    """float32 [batch, width]; channels last is the faster layout for convolutions."""
    device = _device()
    torch.set_num_threads(cores())
    extractor = learner.extractor.to(device)
    if all(tensor.ndim < 5 for tensor in extractor.parameters()):  # 3-D kernels cannot be
        extractor = extractor.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        inputs = [torch.from_numpy(array).to(device) for array in loaded.inputs.values()]
        features: np.ndarray = extractor(*inputs).float().cpu().numpy()
    return features


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


Shard = tuple[np.ndarray, dict[int, str]]


def _join(parts: Sequence[Shard]) -> Shard:
    broken, start = {}, 0
    for values, reasons in parts:
        broken.update({start + row: reason for row, reason in reasons.items()})
        start += len(values)
    return np.concatenate([values for values, _ in parts]), broken


def _read(path: Path) -> Shard | None:
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


def _digest(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    return digest.digest()


def _write(path: Path, shard: Shard | None) -> None:
    assert shard is not None
    values, broken = shard
    reasons = "\0".join(reason.replace("\0", " ") for reason in broken.values()).encode()
    tensors = {
        "values": values,
        "rows": np.array(list(broken), dtype=np.int64),
        "reasons": np.frombuffer(reasons, dtype=np.uint8),
    }
    digest = np.frombuffer(_digest(tensors), dtype=np.uint8)
    bundle.write_tensors(path, {**tensors, "digest": digest})
