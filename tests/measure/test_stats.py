import math

import numpy as np
import pytest

from tlexport.measure import stats
from tlexport.reports import Interval


def rng(seed=0):
    return np.random.default_rng(seed)


def test_wilson_is_the_published_example():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 15/148
    found = stats.wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    found = stats.wilson(15, 148)
    assert (found.low, found.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)]
)
def test_wilson_at_the_ends_stays_within_0_and_1(correct, n, low, high):
    found = stats.wilson(correct, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_knows_nothing():
    assert stats.wilson(0, 0) == Interval(value=0.0, low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("n", "better", "worse"),
    [(50, 0.08, 0.08), (50, 0.15, 0.03), (400, 0.08, 0.08), (400, 0.15, 0.03), (400, 0.01, 0.02)],
)
def test_a_paired_difference_covers_the_true_one_19_times_in_20(n, better, worse):
    drawn = rng().multinomial(n, (better, worse, 1 - better - worse), 2000)
    found = [stats.paired_difference(int(gained), int(lost), n) for gained, lost, _ in drawn]
    hits = np.mean([interval.low <= better - worse <= interval.high for interval in found])
    assert 0.94 <= hits <= 0.995
    assert all(i.low <= i.value <= i.high for i in found)
    assert found[0].value == (drawn[0][0] - drawn[0][1]) / n


def test_a_paired_difference_at_the_ends():
    nothing = stats.paired_difference(0, 0, 100)
    assert nothing.value == 0
    assert nothing.low == pytest.approx(-nothing.high)
    assert 0.01 < nothing.high < 0.03
    assert stats.paired_difference(10, 0, 10).high == 1.0
    assert stats.paired_difference(0, 0, 0) == Interval(value=0.0, low=-1.0, high=1.0)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (10, 2, 0.0385742), (121, 59, 4.434e-6)],
)
def test_mcnemar_is_the_exact_binomial_test(gained, lost, p):
    assert stats.mcnemar(gained, lost) == pytest.approx(p, rel=1e-3)
    assert stats.mcnemar(lost, gained) == stats.mcnemar(gained, lost)


@pytest.mark.parametrize(("p", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_fewest_requests_for_a_percentile(p, n):
    assert stats.fewest(p) == n
    assert 1 - p**n >= 0.975 > 1 - p ** (n - 1)


@pytest.mark.parametrize(
    ("freedom", "true"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (9, 2.2622), (30, 2.0423)],
)
def test_student_is_the_table(freedom, true):
    assert stats.student(0.975, freedom) == pytest.approx(true, rel=0.01)


def test_no_percentile_from_too_few_requests():
    rounds = [np.arange(1.0, 8.0)] * 10  # 70 values
    p50, p90, p95, p99 = stats.percentiles(rounds, (0.5, 0.9, 0.95, 0.99), rng())
    assert p50.value == 4.0
    assert p90.value == 7.0
    assert p95 is None
    assert p99 is None


def test_no_values_no_percentiles():
    assert stats.percentiles([], (0.5,), rng()) == [None]
    assert stats.percentiles([np.empty(0), np.empty(0)], (0.5, 0.99), rng()) == [None, None]


def test_the_same_seed_gives_the_same_interval():
    rounds = list(rng(1).lognormal(size=(10, 50)))
    first = stats.percentiles(rounds, (0.5,), rng(7))
    assert first == stats.percentiles(rounds, (0.5,), rng(7))
    assert first != stats.percentiles(rounds, (0.5,), rng(8))


def test_chunks_do_not_change_the_draws(monkeypatch):
    rounds = list(rng(1).lognormal(size=(10, 50)))
    whole = stats.percentiles(rounds, (0.5, 0.9), rng(7))
    monkeypatch.setattr(stats, "CHUNK", 1700)
    assert stats.percentiles(rounds, (0.5, 0.9), rng(7)) == whole


def covered(found, true):
    return found.low <= true <= found.high


def test_percentile_intervals_cover_the_truth_from_independent_values(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 400)
    draw, hits = rng(3), np.zeros(2)
    truths = (1.0, math.exp(1.2815515655))  # p50 and p90 of a standard lognormal
    for _ in range(300):
        found = stats.percentiles(list(draw.lognormal(size=(10, 40))), (0.5, 0.9), draw)
        hits += [covered(f, t) for f, t in zip(found, truths, strict=True)]
    assert (hits / 300 >= 0.91).all(), hits / 300


def test_percentile_intervals_cover_the_truth_where_rounds_drift(monkeypatch):
    """Each round has its own level; drawing single requests would cover a third of the time."""
    monkeypatch.setattr(stats, "DRAWS", 400)
    draw, by_round, by_request = rng(4), 0, 0
    for _ in range(200):
        level = draw.normal(scale=1.0, size=(10, 1))
        rounds = list(10 + level + draw.normal(scale=0.3, size=(10, 40)))
        by_round += covered(stats.percentiles(rounds, (0.5,), draw)[0], 10.0)
        single = [np.concatenate(rounds)]
        by_request += covered(stats.percentiles(single, (0.5,), draw)[0], 10.0)
    assert by_round / 200 >= 0.90
    assert by_request / 200 < 0.5


def test_rate_covers_the_truth(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 400)
    draw, hits = rng(5), 0
    for _ in range(300):
        seconds = draw.uniform(0.4, 0.6, 10)
        items = draw.poisson(100 * seconds).astype(float)
        hits += covered(stats.rate(items, seconds, draw), 100.0)
    assert hits / 300 >= 0.91


def test_rate_is_all_items_over_all_seconds():
    found = stats.rate(np.array([10.0, 30.0, 20.0]), np.array([1.0, 1.0, 2.0]), rng())
    assert found.value == 15.0
    assert found.low < 15.0 < found.high


def test_a_drift_common_to_both_cancels_in_the_ratio():
    """The machine slows down threefold over the run; the ratio is 1.5 in every round."""
    mood = np.linspace(1.0, 3.0, 10)
    noise = rng(6).normal(1.0, 0.01, 10)
    seconds = np.full(10, 0.5)
    yardstick = 100.0 / mood
    found = stats.ratio(150.0 / mood * noise * seconds, seconds, yardstick, rng())
    assert found.value == pytest.approx(1.5, rel=0.02)
    assert found.high - found.low < 0.05
    assert stats.different(found)
    alone = stats.rate(150.0 / mood * noise * seconds, seconds, rng())
    assert alone.high - alone.low > 0.3 * alone.value


def test_equal_speeds_are_told_different_about_one_time_in_twenty(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 400)
    draw, told = rng(8), 0
    seconds = np.ones(10)
    for _ in range(300):
        mood = draw.uniform(50, 150, 10)
        mine, other = (mood * draw.normal(1, 0.05, 10) for _ in range(2))
        told += stats.different(stats.ratio(mine, seconds, other, draw))
    assert told / 300 <= 0.09


def test_rounds_without_answers_leave_a_finite_ratio():
    items, seconds = np.array([0.0, 4.0, 4.0, 4.0, 4.0, 4.0]), np.ones(6)
    found = stats.ratio(items, seconds, items[::-1], rng())
    assert np.isfinite([found.value, found.low, found.high]).all()


def test_one_is_no_difference():
    assert not stats.different(Interval(value=1.1, low=0.99, high=1.2))
    assert stats.different(Interval(value=1.1, low=1.01, high=1.2))
    assert stats.different(Interval(value=0.9, low=0.8, high=0.95))
