"""Labelled examples asked of runtimes, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.files import text_of
from tlexport.options import DataOptions
from tlexport.progress import Progress
from tlexport.runtimes import Runtime
from tlexport.spec import Tensors, rows
from tlexport.tasks import Decisions, Example, Scores, batches

LISTED = 20


def tally(
    bundle: Bundle,
    examples: Sequence[Example],
    asked: Sequence[Runtime],
    batch: int,
    progress: Progress,
) -> Tally:
    """Ask every runtime every example, batch by batch."""
    task = plugins.load("tasks", bundle.spec.task)
    found = Tally(bundle, task, asked)
    done = 0
    for few in batches(examples, batch, getattr(task, "BUDGET", 0)):
        found.ask(few)
        done += len(few)
        progress("evaluate", done, len(examples))
    return found


def labelled(bundle: Bundle, data: Path | str, columns: DataOptions) -> Sequence[Example]:
    """The examples of `data`, whose labels are the model's, by size: little padding in a batch.

    Raises:
        DataError: they are not usable.
        OptionError: the model has no labels.
    """
    if not bundle.spec.labels:
        raise OptionError(
            "a model that tells labels",
            got=f"{bundle.spec.name} of task {bundle.spec.task}, without labels",
            fix="use `tlexport verify` without --data: it compares outputs of any kind",
        )
    task = plugins.load("tasks", bundle.spec.task)
    examples = task.read(Path(data), columns, bundle.spec.labels).train
    return sorted(examples, key=lambda example: example.size)


class Tally:
    """Scores of one runtime or two, and how the first differs from the second."""

    def __init__(self, bundle: Bundle, task: ModuleType, asked: Sequence[Runtime]) -> None:
        self.bundle = bundle
        self.labels = bundle.spec.labels
        self.asked = asked
        self.broken: list[str] = []
        self.examples = 0
        self.changed = self.right = self.wrong = 0
        self.largest_change = 0.0
        self._task = task
        self._files = bundle.files()
        self._counts = np.zeros(len(self.labels), dtype=np.int64)
        self._scorers = [task.scorer(bundle.spec) for _ in asked]

    def ask(self, examples: Sequence[Example]) -> None:
        """Count a batch of examples."""
        spec = self.bundle.spec
        loaded = self._task.load([e.source for e in examples], spec.preprocess, self._files)
        for row, why in loaded.broken.items():
            self.broken.append(f"{text_of(examples[row].source)}: {why}")
        good = [row for row in range(len(examples)) if row not in loaded.broken]
        if not good:
            return
        inputs: Tensors = rows(loaded.inputs, good)
        truth = np.array([examples[row].label for row in good], dtype=np.int64)
        found = [self._task.decide(spec, runtime(inputs)) for runtime in self.asked]
        for scorer, decisions in zip(self._scorers, found, strict=True):
            scorer.update(truth, decisions)
        self.examples += len(good)
        self._counts += np.bincount(truth, minlength=len(self.labels))
        if len(found) > 1:
            self._compare(truth, found[0], found[1])

    def scores(self) -> list[Scores]:
        """Of each runtime."""
        return [scorer.scores() for scorer in self._scorers]

    def count(self, label: int) -> int:
        """Examples of a label."""
        return int(self._counts[label])

    def _compare(self, truth: np.ndarray, first: Decisions, second: Decisions) -> None:
        ours, theirs = first.order[:, 0], second.order[:, 0]
        changed = ours != theirs
        self.changed += int(changed.sum())
        self.right += int((changed & (ours == truth)).sum())
        self.wrong += int((changed & (theirs == truth)).sum())
        gap = np.abs(first.by_label() - second.by_label())
        self.largest_change = max(self.largest_change, float(gap.max()))


def refuse_broken(tally: Tally, examples: int, *, skip_broken: bool) -> None:
    """Refuse what could not be read, unless it may be skipped and something is left.

    Raises:
        DataError: naming what is broken, and why.
    """
    if tally.broken and (not skip_broken or not tally.examples):
        lines = "\n    ".join(tally.broken[:LISTED])
        more = len(tally.broken) - LISTED
        raise DataError(
            "examples that can be read",
            got=f"{len(tally.broken)} broken of {examples}:\n    {lines}"
            + (f"\n    ... and {more} more" if more > 0 else ""),
            fix="mend or remove them"
            + ("" if skip_broken else ", or pass --skip-broken to leave them out"),
        )
