"""Labelled examples that calibrate a precision and judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.files import sha256_of_json, text_of
from tlexport.measure.stats import paired_difference, wilson
from tlexport.options import ExportOptions, TrainOptions
from tlexport.progress import Progress
from tlexport.reports import AccuracyCost, TrainReport
from tlexport.spec import Tensors, rows
from tlexport.tasks import Example, Examples, batches
from tlexport.training.split import split

CALIBRATING = 100
"""Training examples that set ranges; more change little and cost as much again."""

BATCH = 8
LISTED = 5

Answer = Callable[[Tensors], Mapping[str, Any]]


class Labelled:
    """The examples of `--data`, parted as training parted them.

    `digest` is of what they are, `notes` are for the user.
    """

    def __init__(self, bundle: Bundle, options: ExportOptions) -> None:
        assert options.data is not None
        if not bundle.spec.labels:
            raise OptionError(
                "a model that tells labels, to be judged by labelled examples",
                got=f"{bundle.spec.name} of task {bundle.spec.task}, without labels",
                fix="leave --data out: golden samples calibrate, and `tlexport verify` compares",
            )
        self.name = options.data
        self.notes: tuple[str, ...] = ()
        self._bundle = bundle
        self._task: ModuleType = plugins.load("tasks", bundle.spec.task)
        self._files = bundle.files()
        found = self._task.read(Path(options.data), options.table)
        trained = bundle.report("train", TrainReport)
        parts = split(
            _relabelled(found, bundle.spec.labels),
            fraction=trained.val_fraction if trained else TrainOptions().val_fraction,
            seed=trained.seed if trained else options.seed,
        )
        self._train, self._held = parts.train, sorted(parts.val, key=lambda e: e.size)
        self._seed = options.seed
        self.digest = sha256_of_json([[e.digest, e.label] for e in (*parts.train, *parts.val)])
        self._fp32: np.ndarray | None = None

    def samples(self) -> list[Tensors]:
        """Inputs of one row each, of the training part: as many of each class as there are."""
        rng = np.random.default_rng(self._seed)
        by_label: dict[int, list[Example]] = {}
        for row in rng.permutation(len(self._train)):
            by_label.setdefault(self._train[row].label, []).append(self._train[row])
        turns = max(map(len, by_label.values()))
        dealt = [group[t] for t in range(turns) for group in by_label.values() if t < len(group)]
        chosen = sorted(dealt[:CALIBRATING], key=lambda example: example.size)
        found: list[Tensors] = []
        for batch in self._batches(chosen):
            inputs, _ = self._load(batch)
            count = len(next(iter(inputs.values()))) if inputs else 0
            found += [rows(inputs, [row]) for row in range(count)]
        if not found:
            raise self._unreadable()
        return found

    def judge(self, answer: Answer, progress: Progress) -> np.ndarray:
        """Which held-out examples are answered rightly: bool [examples]."""
        right: list[np.ndarray] = []
        done = 0
        for batch in self._batches(self._held):
            inputs, truth = self._load(batch)
            if len(truth):
                decided = self._task.decide(self._bundle.spec, answer(inputs))
                right.append(decided.order[:, 0] == truth)
            done += len(batch)
            progress("judge on held-out examples", done, len(self._held))
        if not right:
            raise self._unreadable()
        return np.concatenate(right)

    def cost(self, fp32: Answer, lowered: Answer, progress: Progress) -> AccuracyCost:
        """What the second loses beside the first, which is asked once for all."""
        if self._fp32 is None:
            self._fp32 = self.judge(fp32, progress)
        ours, theirs = self.judge(lowered, progress), self._fp32
        count = len(ours)
        return AccuracyCost(
            data=self.name,
            examples=count,
            fp32=wilson(int(theirs.sum()), count),
            accuracy=wilson(int(ours.sum()), count),
            difference=paired_difference(
                int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), count
            ),
        )

    def _batches(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        together = BATCH if all(t.batched for t in self._bundle.spec.inputs) else 1
        return batches(examples, together, getattr(self._task, "BUDGET", 0))

    def _load(self, batch: Sequence[Example]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs and labels of those that can be read; the others are noted."""
        loaded = self._task.load(
            [example.source for example in batch], self._bundle.spec.preprocess, self._files
        )
        for row, why in loaded.broken.items():
            note = f"left out: {text_of(batch[row].source)}: {why}"
            if note not in self.notes:
                self.notes += (note,)
        good = [row for row in range(len(batch)) if row not in loaded.broken]
        truth = np.array([batch[row].label for row in good], dtype=np.int64)
        return (rows(loaded.inputs, good) if good else {}), truth

    def _unreadable(self) -> DataError:
        return DataError(
            f"examples in {self.name!r} that can be read",
            got="none:\n    " + "\n    ".join(self.notes[:LISTED]),
            fix="mend them, or name other data",
        )


def _relabelled(found: Examples, labels: tuple[str, ...]) -> Examples:
    """The same with labels that count into the model's.

    Raises:
        DataError: the data has labels that the model has not.
    """
    strange = sorted(set(found.labels) - set(labels))
    if strange:
        raise DataError(
            f"examples of the model's labels: {', '.join(labels[:20])}",
            got=f"labels {', '.join(strange[:20])}",
            fix="name the data that the model was trained on, or rename the labels",
        )
    place = [labels.index(name) for name in found.labels]

    def renamed(part: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(msgspec.structs.replace(e, label=place[e.label]) for e in part)

    return msgspec.structs.replace(
        found, labels=labels, train=renamed(found.train), val=renamed(found.val)
    )
