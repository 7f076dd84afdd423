"""How well a runtime answers labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType

import numpy as np

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.files import text_of
from tlexport.measure.stats import paired_difference, wilson
from tlexport.options import EvaluateOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import Agreement, ClassScore, EvaluateReport
from tlexport.runtimes import Runtime, connect
from tlexport.spec import Tensors, rows
from tlexport.tasks import Decisions, Example, Scores, batches

LISTED = 20


def evaluate(
    bundle: Bundle | Path | str,
    data: Path | str,
    options: EvaluateOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> EvaluateReport:
    """Ask a runtime every example of `data` and score its answers, batch by batch.

    Where the bundle holds an original, it is asked too (`against`), and the report tells how the
    two differ on the same examples.

    Raises:
        DataError: the examples are not usable, or inputs are broken and may not be skipped.
        OptionError: there is no such runtime, or the model has no labels.
    """
    options, runtime = options or EvaluateOptions(), runtime or RuntimeOptions()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    if not bundle.spec.labels:
        raise OptionError(
            "a model that tells labels",
            got=f"{bundle.spec.name} of task {bundle.spec.task}, without labels",
            fix="use `tlexport verify`: it compares outputs of any kind",
        )
    task = plugins.load("tasks", bundle.spec.task)
    examples = task.read(Path(data), options.data, bundle.spec.labels).train
    examples = sorted(examples, key=lambda example: example.size)  # little padding in a batch
    with ExitStack() as stack:
        name = options.runtime or ("eager@cpu" if bundle.manifest.original else "ort@cpu")
        names = [name]
        if options.against not in ("none", name) and bundle.manifest.original:
            names.append(options.against)
        asked = [stack.enter_context(closing(connect(name, bundle, runtime))) for name in names]
        tally = _Tally(bundle, task, asked)
        done = 0
        for batch in batches(examples, options.batch, getattr(task, "BUDGET", 0)):
            tally.ask(batch)
            done += len(batch)
            progress("evaluate", done, len(examples))
    _refuse_broken(tally, len(examples), skip_broken=options.skip_broken)
    report = _report(tally, str(data), name)
    bundle.write_report("evaluate", report)
    return report


class _Tally:
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
        gap = np.abs(_by_label(first) - _by_label(second))
        self.largest_change = max(self.largest_change, float(gap.max()))


def _by_label(decisions: Decisions) -> np.ndarray:
    """Probabilities in the order of the labels: float64 [batch, labels]."""
    found = np.empty_like(decisions.probabilities)
    np.put_along_axis(found, decisions.order, decisions.probabilities, axis=1)
    return found


def _refuse_broken(tally: _Tally, examples: int, *, skip_broken: bool) -> None:
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


def _report(tally: _Tally, data: str, runtime: str) -> EvaluateReport:
    scores, *others = tally.scores()
    count = tally.examples
    against = None
    if others:
        against = Agreement(
            runtime=tally.asked[1].name,
            accuracy=others[0].accuracy,
            difference=paired_difference(tally.right, tally.wrong, count),
            changed=tally.changed,
            right=tally.right,
            wrong=tally.wrong,
            largest_change=tally.largest_change,
        )
    return EvaluateReport(
        runtime=runtime,
        data=data,
        examples=count,
        accuracy=wilson(round(scores.accuracy * count), count),
        macro_f1=scores.macro_f1,
        classes=tuple(
            ClassScore(
                label=label,
                examples=tally.count(number),
                precision=float(scores.precision[number]),
                recall=float(scores.recall[number]),
            )
            for number, label in enumerate(tally.labels)
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in scores.confusion),
        calibration_error=scores.calibration_error,
        top5=scores.top5,
        against=against,
        skipped=tuple(tally.broken),
    )
