"""How sure a number is: intervals, and when there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from tlexport.reports import Interval, Steadiness

Generator = np.random.Generator
Blocks = Sequence[np.ndarray]
CONFIDENCE = 0.95
DRAWS = 2000
"""Bootstrap draws: the tail of a 95 % interval rests on 50 of them."""
WINDOWS, BAND = 3, 0.10
"""A load is steady where the last three windows agree within 10 % (perf_analyzer's rule)."""
CHUNK = 4_000_000
"""Largest array of the bootstrap, in elements, so that a long run stays below 100 MB."""


def wilson(correct: int, n: int) -> Interval:
    """Share of successes with its 95 % interval; (0, 0, 1) where nothing was tried.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0)
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else middle - half
    high = 1.0 if correct == n else middle + half
    return Interval(value=share, low=low, high=high)


def paired_difference(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Difference of two shares over the same n trials, (gained - lost) / n, with its interval.

    `gained` are the trials where only the first succeeded, `lost` where only the second did.
    Source: Agresti & Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005): Wald's with 0.5 added to each cell.
    """
    if n == 0:
        return Interval(value=0.0, low=-1.0, high=1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first, second, total = gained + 0.5, lost + 0.5, n + 2
    middle = (first - second) / total
    half = z * math.sqrt(first + second - (first - second) ** 2 / total) / total
    return Interval(
        value=(gained - lost) / n, low=max(-1.0, middle - half), high=min(1.0, middle + half)
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value that a change of decision is as often for the better as for the worse.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 12 (1947), in its exact form: a binomial test of the discordant pairs.
    """
    n = gained + lost
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1))
        for k in range(min(gained, lost) + 1)
    )
    return min(1.0, 2 * tail)


def fewest(p: float) -> int:
    """Smallest sample with an upper confidence bound for quantile `p`: p50 6, p90 36, p99 368.

    The largest of n values lies above the quantile with probability 1 - p**n, which must reach
    97.5 % (the upper half of a 95 % interval), so n >= ln(0.025) / ln(p).
    Source: Hahn & Meeker, "Statistical Intervals" (1991), section 5.2.
    """
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(p))


def percentiles(
    rounds: Sequence[np.ndarray], wanted: Sequence[float], rng: np.random.Generator
) -> list[Interval | None]:
    """Quantiles of all rounds together, each with its 95 % interval; None from too few values.

    Whole rounds are drawn, because values within a round share the machine's mood of that
    moment (block bootstrap, Künsch 1989); from a single round, single values are drawn.

    Args:
        rounds: one float array [values] per round.
        wanted: quantiles in (0, 1).
        rng: source of the draws.
    """
    blocks = [np.asarray(r, dtype=float) for r in rounds if len(r)]
    values = np.concatenate(blocks) if blocks else np.empty(0)
    if len(blocks) == 1:
        blocks = list(values.reshape(-1, 1))
    known = [p for p in wanted if len(values) >= fewest(p)]
    if not known:
        return [None] * len(wanted)
    order = np.argsort(values, kind="stable")
    owner = np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])[order]
    drawn = _drawn_quantiles(values[order], owner, known, _weights(len(blocks), rng))
    found = {
        p: _interval(float(np.quantile(values, p, method="inverted_cdf")), draws, len(blocks))
        for p, draws in zip(known, drawn, strict=True)
    }
    return [found.get(p) for p in wanted]


def rate(items: np.ndarray, seconds: np.ndarray, rng: np.random.Generator) -> Interval:
    """Items per second over all rounds, with its 95 % interval (rounds are drawn).

    Args:
        items: [rounds], what was done in each.
        seconds: [rounds], how long each took, none 0.
        rng: source of the draws.
    """
    weights = _weights(len(items), rng)
    drawn = (weights @ items) / (weights @ seconds)
    return _interval(float(items.sum() / seconds.sum()), drawn, len(items))


def ratio(
    items: np.ndarray, seconds: np.ndarray, yardstick: np.ndarray, rng: np.random.Generator
) -> Interval:
    """Throughput relative to a yardstick that took turns with it, with its 95 % interval.

    The same rounds are drawn for both, so what slowed a whole round down cancels.

    Args:
        items: [rounds], what was done in each.
        seconds: [rounds], how long each took.
        yardstick: [rounds], the yardstick's items per second in the same rounds, not all 0.
        rng: source of the draws.
    """
    weights = _weights(len(items), rng)
    speed = items / seconds
    below = weights @ yardstick
    drawn = (weights @ speed)[below > 0] / below[below > 0]
    return _interval(float(speed.sum() / yardstick.sum()), drawn, len(items))


def apart(
    items: np.ndarray, seconds: np.ndarray, below: tuple[np.ndarray, np.ndarray], rng: Generator
) -> Interval:
    """Throughput relative to a yardstick that did not take turns with it, with its 95 % interval.

    Args:
        items: [windows], what was done in each.
        seconds: [windows], how long each took.
        below: the yardstick's own items and seconds.
        rng: source of the draws, which are made for each of the two by itself.
    """
    others, other_seconds = below
    ours, theirs = _weights(len(items), rng), _weights(len(others), rng)
    upper = (ours @ items) / (ours @ seconds)
    lower = (theirs @ others) / (theirs @ other_seconds)
    value = (items.sum() / seconds.sum()) / (others.sum() / other_seconds.sum())
    blocks = min(len(items), len(others))
    return _interval(float(value), upper[lower > 0] / lower[lower > 0], blocks)


def quicker(rounds: Blocks, yardstick: Blocks, rng: Generator) -> Interval:
    """The yardstick's median over this one's, with its 95 % interval; above 1 is quicker.

    Args:
        rounds: one float array [values] per window.
        yardstick: the same of the yardstick.
        rng: source of the draws, which are made for each of the two by itself.
    """
    medians = []
    for each in (rounds, yardstick):
        blocks = [block for block in each if len(block)]
        values = np.concatenate(blocks)
        owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
        order = np.argsort(values, kind="stable")
        weights = _weights(len(blocks), rng)
        drawn = _drawn_quantiles(values[order], owner[order], (0.5,), weights)[0]
        medians.append((float(np.median(values)), drawn, len(blocks)))
    (ours, drawn, count), (theirs, others, other_count) = medians
    return _interval(theirs / ours, others / drawn, min(count, other_count))


def steadiness(rates: Sequence[float], medians: Sequence[float] | None) -> Steadiness:
    """Whether the last three windows agree within 10 % in rate, and in latency where it counts.

    perf_analyzer's rule, with the median in place of its mean: the largest of the three is at most
    1.1 times the smallest. Fewer than three windows are not stable.
    """
    spreads = [_spread(values) for values in (rates, medians) if values is not None]
    return Steadiness(
        stable=all(spread <= BAND for spread in spreads),
        rate=spreads[0],
        latency=spreads[1] if medians is not None else None,
    )


def _spread(values: Sequence[float]) -> float:
    last = values[-WINDOWS:]
    if len(last) < WINDOWS or not min(last) > 0:
        return 1e9
    return max(last) / min(last) - 1


def different(speedup: Interval) -> bool:
    """False where the interval holds 1: no significant difference."""
    return not speedup.low <= 1.0 <= speedup.high


def student(p: float, freedom: int) -> float:
    """Quantile `p` of Student's t; within 1 % of the true value for 0.9 <= p <= 0.999.

    Exact for 1 and 2 degrees of freedom, else Abramowitz & Stegun 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def _weights(blocks: int, rng: np.random.Generator) -> np.ndarray:
    """How often each block is drawn: float [DRAWS, blocks]."""
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS).astype(float)


def _drawn_quantiles(
    values: np.ndarray, owner: np.ndarray, wanted: Sequence[float], weights: np.ndarray
) -> np.ndarray:
    """Quantiles of each draw: float [wanted, draws]; `values` ascend, `owner` is their block."""
    drawn = np.empty((len(wanted), len(weights)))
    step = max(1, CHUNK // len(values))
    for start in range(0, len(weights), step):
        mass = np.cumsum(weights[start : start + step][:, owner], axis=1)
        for row, p in enumerate(wanted):
            reached = mass >= p * mass[:, -1:] - 1e-9
            drawn[row, start : start + step] = values[np.argmax(reached, axis=1)]
    return drawn


def _interval(value: float, drawn: np.ndarray, blocks: int) -> Interval:
    """The 95 % interval of the draws, widened for few blocks ("expanded percentile interval").

    Source: Hesterberg, "What teachers should know about the bootstrap", The American
    Statistician 69 (2015): level Phi(-sqrt(n / (n - 1)) t) in place of 2.5 %.
    """
    tail = (1 - CONFIDENCE) / 2
    if blocks > 1:
        t = student(1 - tail, blocks - 1)
        tail = NormalDist().cdf(-math.sqrt(blocks / (blocks - 1)) * t)
    low, high = np.quantile(drawn, (tail, 1 - tail)) if len(drawn) else (value, value)
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
