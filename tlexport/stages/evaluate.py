"""How well a runtime answers labelled examples."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from tlexport.bundle import Bundle
from tlexport.inquiry.tally import Tally, labelled, refuse_broken, tally
from tlexport.measure.stats import paired_difference, wilson
from tlexport.options import EvaluateOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import Agreement, ClassScore, EvaluateReport
from tlexport.runtimes import connect

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
    examples = labelled(bundle, data, options.data)
    with ExitStack() as stack:
        name = options.runtime or ("eager@cpu" if bundle.manifest.original else "ort@cpu")
        names = [name]
        if options.against not in ("none", name) and bundle.manifest.original:
            names.append(options.against)
        asked = [stack.enter_context(closing(connect(name, bundle, runtime))) for name in names]
        found = tally(bundle, examples, asked, options.batch, progress)
    refuse_broken(found, len(examples), skip_broken=options.skip_broken)
    report = _report(found, str(data), name)
    bundle.write_report("evaluate", report)
    return report


def _report(found: Tally, data: str, runtime: str) -> EvaluateReport:
    scores, *others = found.scores()
    count = found.examples
    against = None
    if others:
        against = Agreement(
            runtime=found.asked[1].name,
            accuracy=others[0].accuracy,
            difference=paired_difference(found.right, found.wrong, count),
            changed=found.changed,
            right=found.right,
            wrong=found.wrong,
            largest_change=found.largest_change,
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
                examples=found.count(number),
                precision=float(scores.precision[number]),
                recall=float(scores.recall[number]),
            )
            for number, label in enumerate(found.labels)
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in scores.confusion),
        calibration_error=scores.calibration_error,
        top5=scores.top5,
        against=against,
        skipped=tuple(found.broken),
    )
