"""A stratified share of the examples, and folds in which every class is learnt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tlexport.errors import DataError
from tlexport.tasks import Example
from tlexport.training.folds import dealt, drawn


def examples(*counts: int, copies: int = 1) -> list[Example]:
    return [
        Example(source=Path(f"{label}/{n}-{c}"), label=label, digest=f"{label}.{n}")
        for label, count in enumerate(counts)
        for n in range(count)
        for c in range(copies)
    ]


def sizes(found: list[Example]) -> list[int]:
    return [count for _, count in sorted(Counter(e.label for e in found).items())]


def test_each_class_gives_its_share():
    assert sizes(drawn(examples(600, 300, 100), 100, 2, 0)) == [60, 30, 10]
    assert sizes(drawn(examples(7, 7, 7), 20, 2, 0)) in ([7, 7, 6], [7, 6, 7], [6, 7, 7])


def test_a_small_class_keeps_its_least_and_the_whole_is_what_was_asked_for():
    found = sizes(drawn(examples(1000, 3, 1), 50, 2, 0))
    assert found == [47, 2, 1]
    assert sizes(drawn(examples(5, 5), 4, 2, 0)) == [2, 2]


def test_all_are_taken_where_there_are_no_more():
    whole = examples(5, 6)
    assert drawn(whole, 11, 2, 0) == whole
    assert drawn(whole, 500, 2, 3) == whole


def test_of_copies_the_first_is_taken():
    found = drawn(examples(4, 4, copies=3), 500, 2, 0)
    assert [str(e.source) for e in found] == [f"{c}/{n}-0" for c in range(2) for n in range(4)]


def test_the_seed_decides_and_the_order_stays():
    whole = examples(50, 50)
    first, again, other = (drawn(whole, 20, 2, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [whole.index(e) for e in first] == sorted(whole.index(e) for e in first)


@pytest.mark.parametrize("counts", [(30, 30), (2, 2, 2), (17, 2, 9), (2, 101)])
@pytest.mark.parametrize("seed", range(3))
def test_folds_are_of_a_size_and_every_class_is_learnt_in_each(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = dealt(labels, 5, seed)
    spread = np.bincount(folds, minlength=5)
    assert spread.max() - spread.min() <= 1
    for fold in range(5):
        assert set(labels[folds != fold]) == set(range(len(counts)))
        for label, count in enumerate(counts):
            assert abs((labels[folds == fold] == label).sum() - count / 5) < 1


def test_a_class_of_one_cannot_be_held_out():
    with pytest.raises(DataError, match="at least two different files"):
        dealt(np.array([0, 0, 1]), 2, 0)
