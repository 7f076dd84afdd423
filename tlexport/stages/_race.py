"""Which of two answers sooner, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tlexport.measure.load import closed_loop
from tlexport.measure.stats import ratio
from tlexport.reports import Interval

ROUNDS = 10
ROUND_S = 0.15
WARM_UP = 3

SETTLE_S = 0.06
"""Until the idle threads of the one before have stopped spinning; measured for `bench`."""


def race(first: Callable[[], object], second: Callable[[], object], seed: int = 0) -> Interval:
    """How many times as fast as the second the first is, with its 95 % interval.

    Both take turns in one run, so that a noisy moment hurts both.
    """
    runners = (first, second)
    for ask in runners:
        for _ in range(WARM_UP):
            ask()
    counts, seconds = np.zeros((2, ROUNDS)), np.zeros((2, ROUNDS))
    for turn in range(ROUNDS):
        for who in (0, 1) if turn % 2 else (1, 0):
            time.sleep(SETTLE_S)
            runners[who]()
            load = closed_loop(runners[who], seconds=ROUND_S)
            counts[who, turn], seconds[who, turn] = len(load.latencies_s), load.busy_s
    rng = np.random.default_rng(seed)
    return ratio(counts[0], seconds[0], counts[1] / seconds[1], rng)
