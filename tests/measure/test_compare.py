import re

import numpy as np
import pytest

from tlexport.measure.compare import all_alike, difference, flips, scale_of


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_the_largest_difference_and_where_it_is():
    want = np.zeros((3, 2, 4), dtype=np.float32)
    got = want.copy()
    got[2, 1, 3] = -0.5
    got[0, 0, 0] = 0.25
    found = difference(want, got)
    assert found.max_abs == 0.5
    assert found.worst_index == (2, 1, 3)
    assert not found.problem


def test_tolerance_is_a_share_of_the_scale():
    found = difference(f32(100.0, 1.0), f32(100.0, 1.009))
    assert found.share(100.0) == pytest.approx(9e-5, rel=1e-3)
    assert found.within(1e-4, 100.0)
    assert not found.within(1e-4, 10.0)


def test_tiny_outputs_have_a_tiny_scale():
    want = f32(8e-14, -3e-14)
    assert not difference(want, f32(0, 0)).within(1e-4, scale_of(want))
    assert difference(want, want * np.float32(1 + 1e-6)).within(1e-4, scale_of(want))


def test_where_the_reference_is_all_zeros_only_zeros_pass():
    zeros = f32(0, 0)
    assert scale_of(zeros) == 0.0
    assert difference(zeros, zeros).within(1e-4, 0.0)
    found = difference(zeros, f32(0, 1e-30))
    assert not found.within(1e-4, 0.0)
    assert np.isfinite(found.share(0.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_nan_and_infinity_fail_even_in_both(bad, both):
    want = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    got = want.copy()
    got[1, 0] = bad
    if both:
        want[1, 0] = bad
    found = difference(want, got)
    assert "not a finite number" in found.problem
    assert found.worst_index == (1, 0)
    assert found.max_abs == 0.0
    assert not found.within(1e30, 1.0)


def test_nan_in_the_reference_alone_fails_too():
    assert difference(f32(np.nan), f32(1)).problem


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        (np.zeros((2, 4), np.float32), r"shape \[2, 4\] in place of \[2, 3\]"),
        (np.zeros((2, 3), np.float16), "float16 in place of float32"),
    ],
)
def test_another_shape_or_dtype_is_a_problem(got, problem):
    found = difference(np.zeros((2, 3), np.float32), got)
    assert found.max_abs is None
    assert found.share(1.0) is None
    assert not found.within(1.0, 1.0)
    assert re.search(problem, found.problem)


@pytest.mark.parametrize(
    ("want", "got", "gap"),
    [
        (np.array([1, 2, 250], np.uint8), np.array([1, 2, 3], np.uint8), 247.0),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array([2**63 - 1], np.int64), np.array([2**63 - 2], np.int64), 1.0),
        (np.array(["cat"], object), np.array(["dog"], object), 1.0),
    ],
)
def test_exact_values_are_compared_exactly(want, got, gap):
    found = difference(want, got)
    assert found.problem
    assert found.max_abs == gap
    assert not found.within(1e9, 1e9)
    assert difference(want, want.copy()).within(1e-4, scale_of(want))


def test_scale_is_the_largest_finite_magnitude():
    assert scale_of(f32(1, -7, np.nan, np.inf)) == 7.0
    assert scale_of(np.array([True])) == 0.0
    assert scale_of(np.empty((0, 3), np.float32)) == 0.0
    assert scale_of(np.array([-(2**63)], np.int64)) == 2.0**63


def test_flips_with_the_reference_margin():
    want = np.array([[1.0, 3.0, 2.5], [5.0, 0.0, 0.0], [1.0, 1.0, 0.0]], np.float32)
    got = np.array([[1.0, 3.0, 3.5], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    first, second = flips(want, got)
    assert (first.row, first.reference, first.candidate, first.margin) == (0, 1, 2, 0.5)
    assert (second.row, second.margin) == (2, 0.0)


def test_no_flips_from_nan_or_a_single_class():
    assert flips(f32(1, 2)[None], f32(np.nan, 0)[None]) == []
    assert flips(f32(1)[None], f32(5)[None]) == []
    assert flips(np.zeros((2, 2, 2)), np.ones((2, 2, 2))) == []


def test_all_alike_is_bitwise():
    assert all_alike(np.ones((4, 3)))
    assert not all_alike(np.array([[1.0], [1.0 + 1e-15]]))
