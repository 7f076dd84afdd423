"""A share of the examples, and who is held out when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlexport.errors import DataError
from tlexport.tasks import Example


def drawn(examples: Sequence[Example], most: int, least: int, seed: int) -> list[Example]:
    """At most `most` different contents, each class by its share and with `least` if it has them.

    Of files with equal bytes the first is taken: none can be held out and learnt from at once.
    """
    contents = list({example.digest: example for example in reversed(examples)}.values())[::-1]
    classes: dict[int, list[int]] = {}
    for place in np.random.default_rng(seed).permutation(len(contents)):
        classes.setdefault(contents[place].label, []).append(int(place))
    places = [classes[label] for label in sorted(classes)]
    quotas = _quotas(np.array([len(each) for each in places]), most, least)
    chosen = [place for each, quota in zip(places, quotas, strict=True) for place in each[:quota]]
    return [contents[place] for place in sorted(chosen)]


def _quotas(sizes: np.ndarray, most: int, least: int) -> np.ndarray:
    """How many of each class, int [classes]: by share, from `least` on, never more than there are.

    Whoever is farthest below its share gets the next one.
    """
    given: np.ndarray = np.minimum(sizes, least)
    if sizes.sum() <= most:
        return sizes
    shares = sizes * (most / sizes.sum())
    while given.sum() < most:
        given[np.argmax(np.where(given < sizes, shares - given, -np.inf))] += 1
    return given


def dealt(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """In which of `count` folds each example is held out: int64 [examples].

    Each class is dealt round, so that folds are of a size and those of a class of two differ.

    Raises:
        DataError: a class has one example alone.
    """
    lonely = np.flatnonzero(np.bincount(labels) == 1)
    if lonely.size:
        raise DataError(
            "at least two different files in each class",
            got=f"{lonely.size} classes with one",
            fix="add examples, or make train/ and val/ folders yourself",
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % count
    return folds
