"""tlexport evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import DataOptions, EvaluateOptions, RuntimeOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import Agreement, EvaluateReport


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@flags(EvaluateOptions, but=("data",))
@flags(DataOptions)
@flags(RuntimeOptions)
@as_json
def command(bundle: Path, data: Path, as_json: bool, **values: Any) -> None:
    """Score a bundle's model on labelled examples, with any runtime.

    DATA is a folder with a sub-folder per class, or a table of texts; above train/ and val/, val/
    is used. The original is asked too (--against), and the difference told.

    \b
    Example:
      tlexport evaluate demo/digits.bundle demo/digits --runtime ort@cpu
    """
    from tlexport.cli import _terminal
    from tlexport.stages.evaluate import evaluate

    options = record(EvaluateOptions, values, data=record(DataOptions, values))
    runtime = record(RuntimeOptions, values)
    with _terminal.progress() as progress:
        report = evaluate(bundle, data, options, runtime, progress=progress)
    _terminal.show(report, as_json, draw)


def _draw_against(against: Agreement, console: Console) -> None:
    gap = against.difference
    console.print(
        f"against {against.runtime} (accuracy {against.accuracy:.3f}): {gap.value:+.4f} "
        f"({gap.low:+.4f} .. {gap.high:+.4f}), {against.changed} decisions changed "
        f"({against.right} to right, {against.wrong} to wrong), probabilities by at most "
        f"{against.largest_change:.2g}"
    )


def draw(report: EvaluateReport, console: Console) -> None:
    """Accuracy with its interval, then each class."""
    from rich.markup import escape
    from rich.table import Table

    accuracy = report.accuracy
    console.print(
        f"[bold]accuracy {accuracy.value:.3f}[/] (95 % interval {accuracy.low:.3f} .. "
        f"{accuracy.high:.3f}), macro F1 {report.macro_f1:.3f}, on {report.examples} examples, "
        f"{report.runtime}"
    )
    top5 = "" if report.top5 is None else f", top-5 accuracy {report.top5:.3f}"
    console.print(f"expected calibration error {report.calibration_error:.3f}{top5}")
    if report.against is not None:
        _draw_against(report.against, console)
    table = Table("class", "examples", "precision", "recall", "mostly taken for")
    labels = [score.label for score in report.classes]
    for number, score in enumerate(report.classes):
        wrong = [0 if n == number else count for n, count in enumerate(report.confusion[number])]
        most = max(wrong, default=0)
        taken = f"{labels[wrong.index(most)]} ({most})" if most else "-"
        table.add_row(
            escape(score.label),
            str(score.examples),
            f"{score.precision:.3f}",
            f"{score.recall:.3f}" if score.examples else "-",
            escape(taken),
        )
    console.print(table)
    for line in report.skipped:
        console.print(f"left out, broken: {line}", markup=False)
