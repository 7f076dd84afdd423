"""Features of a frozen network, computed once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec
import numpy as np
import torch

from tlexport.environment import launch
from tlexport.files import sha256_of_json, write_atomic
from tlexport.progress import Progress
from tlexport.tasks import Example, Learner, Loaded, batches
from tlexport.training import halves, meeting, shards
from tlexport.training.forward import WORTH_S, Faster, Quickest, device, eager
from tlexport.training.shards import Shard

VERSION = 2
"""Raise it when the same files, weights and numbers would give other features than before."""

SHARD = 256
"""Examples per file of the cache: what a killed run loses at most."""


BATCH = {"cpu": 8, "cuda": 64}
"""Default batch: on a CPU larger ones spend their time on page faults, not on arithmetic."""

VERDICT = "verdict.json"


@dataclasses.dataclass(frozen=True)
class Features:
    """`values`: float32 [examples, width], row i of example i; `broken` maps rows to reasons.

    `reused` counts the rows that an earlier run had left in the cache; `runtime` is what computed
    the others, or the last of them, and `notes` are for the user.
    """

    values: np.ndarray
    broken: dict[int, str]
    reused: int
    runtime: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """All that decides what the features are, where they are kept, and what may compute them.

    With `precision` "auto" the network computes in bfloat16 where the processor can, the examples
    are many and a head on a sample is no worse. `faster` is another runtime that may be tried where
    `worth_s` seconds of work or more are ahead.
    """

    task: ModuleType
    learner: Learner
    cache: Path
    batch: int
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    faster: Faster | None = None
    worth_s: float = WORTH_S


def compute(examples: Sequence[Example], extraction: Extraction, progress: Progress) -> Features:
    """Features of the examples: from the cache where it has them, else by one forward pass.

    The cache is keyed by the digests of the files, the network's weights, the preprocessing, and
    the precision where it is not float32. Which runtime computed them is not in the key: another
    one is taken only if it differs by no more than rounding, as PyTorch does from batch to batch.

    The cache is written shard by shard, each whole or not at all: a killed run goes on where it
    stopped. The processes of one launch (torchrun, srun) divide the shards and meet in the cache.
    """
    # Those of a size together, so that padding is not paid for; the same order for any split.
    order = sorted(range(len(examples)), key=lambda row: _place(examples[row]))
    ordered = [examples[row] for row in order]
    half, notes = _halved(ordered, extraction)
    folder = extraction.cache / _key(ordered, extraction, half=half)
    parts = [ordered[at : at + SHARD] for at in range(0, len(ordered), SHARD)]
    found = {
        number: shard
        for number in range(len(parts))
        if (shard := shards.read(shards.file_of(folder, number))) is not None
    }
    done = reused = sum(len(parts[number]) for number in found)
    progress("features", done, len(examples))
    missing = {number: part for number, part in enumerate(parts) if number not in found}
    forward = Quickest(
        eager(extraction.learner.extractor, half=half),
        None if half else _faster(extraction),
        extraction.worth_s,
    )

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        progress("features", done, len(examples))

    mine = launch()
    own = [number for number in missing if number % mine.count == mine.rank]
    longest_s, began = 0.0, time.monotonic()
    for number, shard in _computed({n: missing[n] for n in own}, extraction, forward, count):
        shards.write(shards.file_of(folder, number), shard)
        found[number] = shard
        longest_s, began = max(longest_s, time.monotonic() - began), time.monotonic()
    others = {number: part for number, part in missing.items() if number not in found}

    def instead(number: int) -> Shard:
        ((_, shard),) = _computed({number: missing[number]}, extraction, forward, lambda rows: None)
        return shard

    for number, shard in meeting.awaited(list(others), folder, instead, longest_s):
        found[number] = shard
        count(len(missing[number]))
    computed, reasons = shards.join([found[number] for number in range(len(parts))])
    values = np.empty_like(computed)
    values[order] = computed
    broken = {order[row]: reason for row, reason in reasons.items()}
    return Features(
        values,
        dict(sorted(broken.items())),
        reused,
        (forward.used + (" in bf16" if half else "")) if missing else "",
        (*notes, *forward.notes),
    )


def _place(example: Example) -> tuple[int, str]:
    return example.size, str(example.source)


def _faster(extraction: Extraction) -> Faster | None:
    return extraction.faster if device() == "cpu" else None


def _key(examples: Sequence[Example], extraction: Extraction, *, half: bool = False) -> str:
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
            **({"precision": "bf16"} if half else {}),
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


def _halved(ordered: Sequence[Example], extraction: Extraction) -> tuple[bool, tuple[str, ...]]:
    """Whether the network shall compute in bfloat16, and a note if that was refused.

    What a sample said is kept beside the features, so that another run need not ask again.
    """
    if extraction.precision == "fp32" or not ordered:
        return False, ()
    if extraction.precision == "auto":
        if len(ordered) < halves.LEAST or not halves.available():
            return False, ()
        if (extraction.cache / _key(ordered, extraction)).is_dir():
            return False, ()  # some are there in float32, and the others shall be alike
    place = extraction.cache / _key(ordered, extraction, half=True) / VERDICT
    if place.is_file():
        verdict = msgspec.json.decode(place.read_bytes(), type=halves.Verdict)
    else:
        rows = halves.sample([example.label for example in ordered])
        asked = [ordered[row] for row in rows]
        exact_values, half_values = (
            _sampled(asked, extraction, half=half) for half in (False, True)
        )
        labels = np.array([example.label for example in asked], dtype=np.int64)
        verdict = halves.judge(exact_values, half_values, labels)
        write_atomic(place, msgspec.json.encode(verdict))
    if verdict.holds:
        return True, ()
    return False, (
        f"features were computed in fp32: a head on bf16 features of a sample had accuracy "
        f"{verdict.half:.3f}, one on fp32 features {verdict.exact:.3f}",
    )


def _sampled(examples: Sequence[Example], extraction: Extraction, *, half: bool) -> np.ndarray:
    """float32 [examples, width], those that cannot be read as zeros."""
    forward = Quickest(eager(extraction.learner.extractor, half=half), None, WORTH_S)
    found = _computed({0: examples}, extraction, forward, lambda rows: None)
    return next(shard for _, (shard, _) in found)


def _computed(
    missing: dict[int, Sequence[Example]],
    extraction: Extraction,
    forward: Quickest,
    count: Callable[[int], None],
) -> Iterator[tuple[int, Shard]]:
    """Compute the shards in a row, the next batch being decoded meanwhile."""
    size = extraction.batch or BATCH[device().partition(":")[0]]
    budget = getattr(extraction.task, "BUDGET", 0)
    asked = [(n, part) for n, shard in missing.items() for part in batches(shard, size, budget)]
    parts: list[Shard] = []
    for place, (number, loaded) in enumerate(_loaded(asked, extraction)):
        values = forward(
            loaded.inputs, len(asked) - place - 1, lambda: _load(asked[-1][1], extraction).inputs
        )
        parts.append((values, loaded.broken))
        count(len(values))
        if place + 1 == len(asked) or asked[place + 1][0] != number:
            yield number, shards.join(parts)
            parts = []


def _loaded(
    asked: Sequence[tuple[int, Sequence[Example]]], extraction: Extraction
) -> Iterator[tuple[int, Loaded]]:
    """Decode one batch ahead of the network."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        waiting = [ahead.submit(_load, batch, extraction) for _, batch in asked[:1]]
        for place, (number, _) in enumerate(asked):
            loaded = waiting.pop().result()
            if place + 1 < len(asked):
                waiting.append(ahead.submit(_load, asked[place + 1][1], extraction))
            yield number, loaded


def _load(batch: Sequence[Example], extraction: Extraction) -> Loaded:
    loaded: Loaded = extraction.task.load(
        [example.source for example in batch],
        extraction.learner.preprocess,
        extraction.learner.files,
    )
    return loaded
