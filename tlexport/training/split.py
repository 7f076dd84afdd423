"""Which examples train, and which are held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tlexport.errors import DataError
from tlexport.files import text_of
from tlexport.tasks import Example, Examples


def split(examples: Examples, *, fraction: float, seed: int) -> Examples:
    """Hold out `fraction` of each class, by seed; no content stands in both parts.

    Copies of one file (equal bytes) stay together. Where the user made a val/ folder it is kept,
    and copies of its files are left out of training, with a note.

    Raises:
        DataError: nothing would be left to train on or to hold out.
    """
    if examples.val:
        return _apart(examples)
    held = _chosen(examples.train, fraction, seed)
    train = tuple(example for example in examples.train if example.digest not in held)
    val = tuple(example for example in examples.train if example.digest in held)
    if not val or {example.label for example in train} != {e.label for e in examples.train}:
        raise DataError(
            "at least two different files in some class, and one of each class to train on",
            got=f"{len(examples.train)} files in {len(examples.labels)} classes",
            fix="add examples, or make train/ and val/ folders yourself",
        )
    notes = examples.notes + _lonely(examples, val)
    return Examples(labels=examples.labels, train=train, val=val, notes=notes)


def _chosen(examples: Sequence[Example], fraction: float, seed: int) -> set[str]:
    classes: dict[int, dict[str, None]] = defaultdict(dict)
    seen: set[str] = set()
    for example in examples:
        if example.digest not in seen:
            seen.add(example.digest)
            classes[example.label][example.digest] = None
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for label in sorted(classes):
        contents = list(classes[label])
        count = min(max(1, round(fraction * len(contents))), len(contents) - 1)
        held.update(contents[i] for i in rng.permutation(len(contents))[:count])
    return held


def _lonely(examples: Examples, val: Sequence[Example]) -> tuple[str, ...]:
    notes = []
    absent = sorted(set(range(len(examples.labels))) - {example.label for example in val})
    if absent:
        names = ", ".join(examples.labels[label] for label in absent)
        notes.append(f"too few different files to hold one out, so never checked: {names}")
    several: dict[str, set[int]] = defaultdict(set)
    for example in examples.train:
        several[example.digest].add(example.label)
    twice = [example for example in examples.train if len(several[example.digest]) > 1]
    if twice:
        names = ", ".join(text_of(example.source) for example in twice[:4])
        notes.append(f"{len(twice)} files stand in more than one class with equal bytes: {names}")
    return tuple(notes)


def _apart(examples: Examples) -> Examples:
    held = {example.digest for example in examples.val}
    train = tuple(example for example in examples.train if example.digest not in held)
    dropped = [example for example in examples.train if example.digest in held]
    if {example.label for example in train} != {example.label for example in examples.train}:
        raise DataError(
            "in train/ files of each class that are not in val/ too",
            got=f"{len(dropped)} files of train/ have a copy in val/, and a class has no others",
            fix="take the copies out of val/",
        )
    notes = examples.notes
    if dropped:
        names = ", ".join(text_of(example.source) for example in dropped[:4])
        notes += (f"{len(dropped)} files left out of training, as val/ has copies: {names}",)
    return Examples(labels=examples.labels, train=train, val=examples.val, notes=notes)
