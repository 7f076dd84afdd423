"""Shards of other processes, awaited in a shared folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tlexport.environment import launch
from tlexport.training import shards
from tlexport.training.shards import Shard

PATIENCE_S = 60.0
"""Seconds without a new shard after which the others are thought dead, at least."""

PATIENCE_SHARDS = 4
"""The same, in the time that the slowest shard took here: another machine may be slower."""

POLL_S = 0.2


def awaited(
    numbers: Sequence[int], folder: Path, instead: Callable[[int], Shard], shard_s: float
) -> Iterator[tuple[int, Shard]]:
    """Shards as others write them; where nothing comes any more, `instead` makes them here.

    `shard_s` is what a shard took here. A shard that two processes make is the same twice, so
    whoever is taken for dead and is not does no harm.
    """
    waiting = list(numbers)
    patience_s = max(PATIENCE_S, PATIENCE_SHARDS * shard_s)
    last = time.monotonic()
    while waiting:
        for number in list(waiting):
            shard = shards.read(shards.file_of(folder, number))
            if shard is not None:
                waiting.remove(number)
                last = time.monotonic()
                yield number, shard
        if not waiting:
            return
        if time.monotonic() - last < patience_s:
            time.sleep(POLL_S)
            continue
        number = waiting.pop(launch().rank % len(waiting))  # survivors begin at different ones
        made = instead(number)
        shards.write(shards.file_of(folder, number), made)
        yield number, made
