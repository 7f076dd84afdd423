"""Held-out examples are of every class, by seed, and never copies of trained ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tlexport.errors import DataError
from tlexport.tasks import Example, Examples
from tlexport.training.split import split


def examples(counts: dict[str, int], copies: int = 1) -> Examples:
    """`counts` different files per class, each `copies` times."""
    train = tuple(
        Example(source=Path(f"{label}/{n}-{c}.png"), label=number, digest=f"{label}{n}")
        for number, (label, count) in enumerate(counts.items())
        for n in range(count)
        for c in range(copies)
    )
    return Examples(labels=tuple(counts), train=train, val=(), notes=())


def per_class(part: tuple[Example, ...]) -> Counter[int]:
    return Counter(example.label for example in part)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_each_class_gives_its_share_and_nothing_is_lost(fraction, seed):
    whole = examples({"a": 100, "b": 40, "c": 10})
    parts = split(whole, fraction=fraction, seed=seed)
    assert per_class(parts.val) == {
        0: round(100 * fraction),
        1: round(40 * fraction),
        2: round(10 * fraction),
    }
    assert set(parts.train) | set(parts.val) == set(whole.train)
    assert not {e.digest for e in parts.train} & {e.digest for e in parts.val}
    assert parts.notes == ()
    assert parts.labels == whole.labels


def test_the_seed_decides():
    whole = examples({"a": 50, "b": 50})
    first, again, other = (split(whole, fraction=0.2, seed=s) for s in (1, 1, 2))
    assert first == again
    assert set(first.val) != set(other.val)


def test_the_smallest_class_still_has_one_of_each():
    parts = split(examples({"a": 2, "b": 100}), fraction=0.01, seed=0)
    assert per_class(parts.val) == {0: 1, 1: 1}
    parts = split(examples({"a": 2, "b": 100}), fraction=0.99, seed=0)
    assert per_class(parts.train)[0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_file_stay_together(seed):
    parts = split(examples({"a": 10, "b": 10}, copies=3), fraction=0.3, seed=seed)
    assert not {e.digest for e in parts.train} & {e.digest for e in parts.val}
    assert per_class(parts.val) == {0: 9, 1: 9}


def test_one_content_in_two_classes_is_not_in_both_parts_and_is_noted():
    twice = [
        Example(source=Path(f"{label}/same.png"), label=number, digest="same")
        for number, label in enumerate("ab")
    ]
    plain = examples({"a": 5, "b": 5})
    whole = Examples(labels=plain.labels, train=(*plain.train, *twice), val=(), notes=("old",))
    for seed in range(6):
        parts = split(whole, fraction=0.3, seed=seed)
        assert not {e.digest for e in parts.train} & {e.digest for e in parts.val}
        assert parts.notes[0] == "old"
        assert parts.notes[1].startswith("2 files stand in more than one class with equal bytes: ")
        assert "same.png" in parts.notes[1]


def test_a_class_of_one_file_trains_and_is_noted_as_never_checked():
    parts = split(examples({"a": 1, "b": 10}), fraction=0.2, seed=0)
    assert per_class(parts.train)[0] == 1
    assert parts.notes == ("too few different files to hold one out, so never checked: a",)


@pytest.mark.parametrize("counts", [{"a": 1, "b": 1}, {"a": 1}])
@pytest.mark.parametrize("copies", [1, 5])
def test_too_little_is_refused(counts, copies):
    with pytest.raises(DataError, match="two different files in some class") as caught:
        split(examples(counts, copies), fraction=0.2, seed=0)
    assert f"{len(counts) * copies} files in {len(counts)} classes" == caught.value.got


def test_the_users_own_split_is_kept():
    train, val = examples({"a": 5, "b": 5}).train, examples({"c": 2, "d": 2}).train
    whole = Examples(labels=("a", "b"), train=train, val=val, notes=())
    assert split(whole, fraction=0.9, seed=3) == whole


def test_copies_of_val_are_dropped_from_train_with_a_note():
    train = examples({"a": 5, "b": 5}).train
    val = tuple(
        Example(source=Path("val") / e.source, label=e.label, digest=e.digest) for e in train[:2]
    )
    parts = split(Examples(labels=("a", "b"), train=train, val=val, notes=()), fraction=0.2, seed=0)
    assert parts.val == val
    assert parts.train == train[2:]
    assert parts.notes == (
        "2 files left out of training, as val/ has copies: a/0-0.png, a/1-0.png",
    )


def test_a_class_whose_every_file_is_in_val_is_refused():
    train = examples({"a": 2, "b": 5}).train
    whole = Examples(labels=("a", "b"), train=train, val=train[:2], notes=())
    with pytest.raises(DataError, match="not in val/ too") as caught:
        split(whole, fraction=0.2, seed=0)
    assert caught.value.got.startswith("2 files of train/ have a copy in val/")
