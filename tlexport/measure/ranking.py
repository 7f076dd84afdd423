"""Who is better at what, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlexport.measure.stats import CONFIDENCE, DRAWS, paired_difference
from tlexport.reports import Interval


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which stand on the Pareto front: nobody costs no more and gains no less, and one of it less.

    Those that are alike in both stand there together.
    """
    pairs = list(zip(costs, gains, strict=True))
    return [
        not any(
            other_cost <= cost and other_gain >= gain and (other_cost, other_gain) != (cost, gain)
            for other_cost, other_gain in pairs
        )
        for cost, gain in pairs
    ]


def behind(correct: np.ndarray, best: int) -> list[Interval]:
    """Share of successes less that of row `best`, over the same trials.

    All intervals hold together with 95 %: each is at the confidence that Bonferroni asks for so
    many comparisons. The truly best one is therefore among those whose interval reaches 0 with 95 %
    at least, whichever came out best here.
    Source: Gupta, "On some multiple decision (selection and ranking) rules", Technometrics 7
    (1965), with Bonferroni's bound for the joint distribution.

    Args:
        correct: bool [who, trials].
        best: row that came out best.
    """
    others = max(1, len(correct) - 1)
    confidence = 1 - (1 - CONFIDENCE) / others
    return [
        paired_difference(
            int((row & ~correct[best]).sum()),
            int((~row & correct[best]).sum()),
            row.size,
            confidence,
        )
        for row in correct
    ]


def likely_best(correct: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each would be the best if other trials had been drawn: float [who], sums to 1.

    Bootstrap over the trials of correct: bool [who, trials]; those who tie share a draw.
    """
    patterns, counts = np.unique(correct, axis=1, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS)
    scores = drawn @ patterns.T.astype(np.int64)
    first = scores == scores.max(axis=1, keepdims=True)
    share: np.ndarray = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return share
