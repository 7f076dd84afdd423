import numpy as np
import pytest

from tlexport.measure.floor import (
    Asked,
    Tolerance,
    noise_floor,
    share_of_scale,
    usual,
)


def asked(scale: float, rows: int = 6, seed: int = 0) -> Asked:
    """An original whose rounding to float32 is real: sums of many products."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((rows, 400)) * scale
    right = rng.standard_normal((400, 5))
    single = left.astype(np.float32) @ right.astype(np.float32)
    truth = left.astype(np.float32).astype(np.float64) @ right.astype(np.float32).astype(float)
    return Asked(truth=truth, original=single, rounded=single)


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e6])
def test_the_floor_has_no_scale(scale):
    found = asked(scale)
    bar = noise_floor(found, usual(found), factor=8)
    assert bar.judge(found.original).passed
    assert bar.judge(found.original).ratio <= 1
    off = found.original * np.float32(1 + 1e-5)
    assert not bar.judge(off).passed
    assert not bar.judge(np.zeros_like(off)).passed


def test_one_wrong_element_of_many_is_seen():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((2, 100_000))
    single = truth.astype(np.float32)
    found = Asked(truth=truth, original=single, rounded=single)
    bar = noise_floor(found, usual(found), factor=8)
    wrong = single.copy()
    wrong[1, 70_000] += 1e-5
    judged = bar.judge(wrong)
    assert not judged.passed
    assert judged.worst_index == (1, 70_000)
    assert judged.error == pytest.approx(1e-5, rel=0.05)
    assert judged.ratio == pytest.approx(judged.error / judged.own)


def test_a_row_whose_rounding_cancels_leans_on_the_usual():
    """Differences of large numbers: what rounding costs is far above a unit of the answer."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((6, 5))
    single = (truth + 1e-4 * rng.standard_normal(truth.shape)).astype(np.float32)
    single[0] = truth[0].astype(np.float32)
    found = Asked(truth=truth, original=single, rounded=single)
    bar = noise_floor(found, usual(found), factor=8)
    assert bar.norms[0] > 1e-5 > noise_floor(found, None, factor=8).norms[0]
    other = (truth + 1e-4 * rng.standard_normal(truth.shape)).astype(np.float32)
    assert bar.judge(other).passed


def test_zeros_where_the_original_answers_zeros_and_nothing_else():
    zero = np.zeros((3, 4))
    found = Asked(truth=zero, original=zero.astype(np.float32), rounded=zero.astype(np.float32))
    bar = noise_floor(found, usual(found), factor=8)
    assert bar.judge(zero.astype(np.float32)).passed
    judged = bar.judge(zero.astype(np.float32) + np.float32(1e-30))
    assert not judged.passed
    assert judged.ratio == np.inf


def test_a_coarse_precision_has_a_limit_of_its_own():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((8, 50))
    rounded = (truth + 0.2 * rng.standard_normal(truth.shape)).astype(np.float32)
    found = Asked(truth=truth, original=truth.astype(np.float32), rounded=rounded)
    bar = noise_floor(found, usual(found), factor=8, most=1.0)
    other = (truth + 0.3 * rng.standard_normal(truth.shape)).astype(np.float32)
    assert bar.judge(other).passed
    assert not bar.judge(-truth.astype(np.float32)).passed


def test_a_lucky_draw_of_a_coarse_precision_leaves_room_for_one_step():
    truth = np.random.default_rng(0).standard_normal((8, 50))
    single = truth.astype(np.float32)
    found = Asked(truth=truth, original=single, rounded=single)
    off = single * np.float32(1.02)
    assert not noise_floor(found, usual(found), factor=8).judge(off).passed
    assert noise_floor(found, usual(found), factor=8, unit=1 / 127).judge(off).passed
    wrong = single * np.float32(1.2)
    assert not noise_floor(found, usual(found), factor=8, unit=1 / 127).judge(wrong).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value):
    found = asked(1.0)
    bar = noise_floor(found, usual(found), factor=8)
    wrong = found.original.copy()
    wrong[2, 3] = value
    judged = bar.judge(wrong)
    assert not judged.passed
    assert "not a finite number" in judged.problem
    assert judged.worst_index == (2, 3)


def test_integers_must_be_equal():
    whole = np.arange(6).reshape(2, 3)
    found = Asked(truth=whole, original=whole, rounded=whole)
    bar = noise_floor(found, None, factor=8)
    assert bar.judge(whole).passed
    assert not bar.judge(whole + 1).passed


def test_rows_are_picked_and_held_against_another_answer():
    found = asked(1.0)
    bar = noise_floor(found, usual(found), factor=8)
    rows = np.array([4, 1])
    assert bar.pick(rows).judge(found.original[rows]).passed
    assert not bar.pick(rows).judge(found.original[rows[::-1]]).passed
    assert bar.between(found.original + 1).judge(found.original + 1).passed
    assert bar.room(0) == 8 * bar.peaks[0]


def test_tolerances_as_numpy_has_them():
    want = np.array([[1.0, 100.0]], dtype=np.float32)
    bar = Tolerance(want=want, atol=0.1, rtol=0.01)
    assert bar.judge(np.array([[1.1, 101.0]], dtype=np.float32)).passed
    judged = bar.judge(np.array([[1.2, 100.0]], dtype=np.float32))
    assert not judged.passed
    assert judged.worst_index == (0, 0)
    share = share_of_scale(want, 1e-3)
    assert share.judge(want + np.float32(0.09)).passed
    assert not share.judge(want + np.float32(0.11)).passed


def test_the_share_of_a_question_about_zero_is_that_of_the_usual_scale():
    want = np.array([[1e-4, -1e-4]], dtype=np.float32)
    bar = share_of_scale(want, 1e-3, least=100.0)
    assert bar.judge(want + np.float32(0.09)).passed
    assert not bar.judge(want + np.float32(0.11)).passed
    assert not share_of_scale(want, 1e-3, least=1e-5).judge(want + np.float32(1e-6)).passed
