"""Fronts, differences to the best, and how often another would be the best."""

from __future__ import annotations

import numpy as np
import pytest

from tlexport.measure import ranking


def test_the_front_is_what_nobody_beats():
    costs, gains = [1, 2, 3, 4, 2.5], [0.5, 0.7, 0.7, 0.9, 0.6]
    assert ranking.front(costs, gains) == [True, True, False, True, False]


def test_equals_stand_on_the_front_together():
    assert ranking.front([1, 1, 1], [0.5, 0.5, 0.4]) == [True, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_each_off_the_front_is_beaten_by_one_on_it(seed):
    rng = np.random.default_rng(seed)
    costs, gains = rng.integers(0, 9, (2, 30)).tolist()
    on = ranking.front(costs, gains)
    best = [(c, g) for c, g, there in zip(costs, gains, on, strict=True) if there]
    for cost, gain, there in zip(costs, gains, on, strict=True):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in best)
        assert beaten != there


def test_a_clear_difference_is_told_and_a_faint_one_is_not():
    n = np.arange(400)
    correct = np.stack([n % 10 > 0, n % 10 > 1, (n + 5) % 10 > 0, n % 2 > 0])
    best, close, same, far = ranking.behind(correct, 0)
    assert best.value == 0
    assert best.low < 0 < best.high
    assert close.value == pytest.approx(-0.1)
    assert close.high < 0
    assert same.low < 0 < same.high
    assert far.value == pytest.approx(-0.4)
    assert far.high < -0.3


def test_more_comparisons_make_each_of_them_wider():
    rng = np.random.default_rng(0)
    correct = rng.random((6, 200)) < 0.8
    few, many = ranking.behind(correct[:2], 0)[1], ranking.behind(correct, 0)[1]
    assert many.low < few.low < few.high < many.high


def test_the_best_one_is_seldom_left_behind():
    """Of 300 experiments with six equals and one truly better, 95 % keep that one (they say)."""
    rng = np.random.default_rng(1)
    lost = 0
    for _ in range(300):
        correct = rng.random((7, 150)) < np.array([0.82, *[0.8] * 6])[:, None]
        best = int(correct.mean(1).argmax())
        lost += ranking.behind(correct, best)[0].high < 0
    assert lost <= 300 * 0.05


def test_who_is_likely_the_best():
    n = np.arange(300)
    correct = np.stack([n % 10 > 0, n % 10 > 0, n % 3 > 0])
    share = ranking.likely_best(correct, np.random.default_rng(0))
    assert share.sum() == pytest.approx(1)
    assert share[0] == share[1] > 0.49
    assert share[2] < 0.01
    one = ranking.likely_best(correct[:1], np.random.default_rng(0))
    assert one.tolist() == [1.0]
