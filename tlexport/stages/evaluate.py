"""How well a runtime answers labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import DataError
from tlexport.files import text_of
from tlexport.measure.stats import wilson
from tlexport.options import EvaluateOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import ClassScore, EvaluateReport
from tlexport.runtimes import Runtime, connect
from tlexport.spec import rows
from tlexport.tasks import Decisions, Example


def evaluate(
    bundle: Bundle | Path | str,
    data: Path | str,
    options: EvaluateOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> EvaluateReport:
    """Ask a runtime every example of `data`, and score its answers.

    Raises:
        DataError: the examples are not usable, or files are broken and may not be skipped.
        OptionError: there is no such runtime.
    """
    options = options or EvaluateOptions()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    task = plugins.load("tasks", bundle.spec.task)
    examples = task.read(Path(data), bundle.spec.labels).train
    answering = connect(options.runtime, bundle, runtime or RuntimeOptions())
    try:
        decisions, broken = _ask(answering, task, examples, progress, options.batch)
    finally:
        answering.close()
    if broken and not options.skip_broken:
        lines = "\n    ".join(list(broken.values())[:20])
        raise DataError(
            "files that can be read",
            got=f"{len(broken)} broken of {len(examples)}:\n    {lines}",
            fix="mend or remove them, or pass --skip-broken to leave them out",
        )
    truth = np.array([e.label for row, e in enumerate(examples) if row not in broken])
    scores = task.score(bundle.spec, truth, decisions)
    report = EvaluateReport(
        runtime=options.runtime,
        data=str(data),
        examples=len(truth),
        accuracy=wilson(round(scores.accuracy * len(truth)), len(truth)),
        macro_f1=scores.macro_f1,
        classes=tuple(
            ClassScore(
                label=label,
                examples=int((truth == number).sum()),
                precision=float(scores.precision[number]),
                recall=float(scores.recall[number]),
            )
            for number, label in enumerate(bundle.spec.labels)
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in scores.confusion),
        skipped=tuple(broken.values()),
    )
    bundle.write_report("evaluate", report)
    return report


def _ask(
    answering: Runtime,
    task: ModuleType,
    examples: Sequence[Example],
    progress: Progress,
    batch: int,
) -> tuple[Decisions, dict[int, str]]:
    orders, probabilities, broken = [], [], {}
    for at in range(0, len(examples), batch):
        part = examples[at : at + batch]
        loaded = task.load([example.path for example in part], answering.spec.preprocess)
        for row, why in loaded.broken.items():
            broken[at + row] = f"{text_of(part[row].path)}: {why}"
        good = [row for row in range(len(part)) if row not in loaded.broken]
        if good:
            decided = task.decide(answering.spec, answering(rows(loaded.inputs, good)))
            orders.append(decided.order)
            probabilities.append(decided.probabilities)
        progress("evaluate", at + len(part), len(examples))
    if not orders:
        raise DataError(
            "at least one file that can be read",
            got=f"{len(broken)} broken, such as {next(iter(broken.values()))}",
            fix="mend the files",
        )
    return Decisions(np.concatenate(orders), np.concatenate(probabilities)), broken
