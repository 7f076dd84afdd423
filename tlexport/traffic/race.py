"""Which of two answers sooner, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tlexport.measure.load import Load, closed_loop
from tlexport.measure.stats import ratio
from tlexport.reports import Interval

ROUNDS = 10
ROUND_S = 0.15
WARM_UP = 3

SETTLE_S = 0.06
"""Until the idle threads of the one before have stopped spinning; measured for `bench`."""


def race(first: Callable[[], object], second: Callable[[], object], seed: int = 0) -> Interval:
    """How many times as fast as the second the first is, one request after the other.

    Its 95 % interval, see `in_turns`.
    """
    for ask in (first, second):
        for _ in range(WARM_UP):
            ask()
    return in_turns(_turn(first), _turn(second), ROUNDS, seed)


def in_turns(
    first: Callable[[], Load], second: Callable[[], Load], rounds: int, seed: int
) -> Interval:
    """How many times the second's throughput the first has, with its 95 % interval.

    Both take turns in one run, so that a noisy moment hurts both.
    """
    turns = (first, second)
    counts, seconds = np.zeros((2, rounds)), np.zeros((2, rounds))
    for turn in range(rounds):
        for who in (0, 1) if turn % 2 else (1, 0):
            load = turns[who]()
            counts[who, turn], seconds[who, turn] = load.answered, load.busy_s
    rng = np.random.default_rng(seed)
    return ratio(counts[0], seconds[0], counts[1] / seconds[1], rng)


def _turn(ask: Callable[[], object]) -> Callable[[], Load]:
    def turn() -> Load:
        time.sleep(SETTLE_S)
        ask()
        return closed_loop(ask, seconds=ROUND_S)

    return turn
