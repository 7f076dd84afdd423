"""`tlexport verify`: prove a runtime equal to the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import as_json, flags, record
from tlexport.errors import ParityError
from tlexport.options import RuntimeOptions, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from tlexport.reports import ParityReport, ShapeParity

MOST_FLIPS = 10


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(VerifyOptions)
@flags(RuntimeOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Ask the original and the export the same questions, and judge the answers.

    Exits with 3 where they differ; the report is printed and kept in BUNDLE all the same.

    \b
    Example:
      tlexport verify demo/digits.bundle
      tlexport verify demo/digits.bundle --candidate triton@localhost:8001
    """
    from tlexport.cli import _terminal
    from tlexport.stages.verify import verify

    options, runtime = record(VerifyOptions, values), record(RuntimeOptions, values)
    with _terminal.progress() as tell:
        report = verify(bundle, options, runtime, progress=tell)
    _terminal.show(report, as_json, draw)
    if not report.passed:
        raise refusal(report)


def refusal(report: ParityReport) -> ParityError:
    """The error for a report that did not pass: its first reason, and how many there are."""
    reasons = [check.reason for check in report.checks if not check.passed]
    reasons = reasons or [f"golden sample {f.sample}: another label" for f in report.flips]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return ParityError(
        f"{report.candidate} to answer as {report.reference} does",
        got=reasons[0] + more,
        fix="package this bundle and serve that version, or look for another model at that address"
        if report.candidate.startswith("triton@")
        else "the file answers otherwise than what came with its samples: they are of other "
        "weights or inputs, or of another precision (--tolerance is a share of the outputs' scale)"
        if report.reference == "golden@bundle"
        else "export again; where the golden outputs are called stale, train or import again",
    )


def draw(report: ParityReport, console: Console) -> None:
    """The verdict, one line per check, the first reason of each kind, and changed labels."""
    from rich.markup import escape

    verdict = "[green]passed[/]" if report.passed else "[red]FAILED[/]"
    console.print(
        f"{verdict}: {escape(report.candidate)} against {escape(report.reference)}, "
        f"{report.samples} golden samples"
    )
    console.print(
        f"largest difference {report.max_abs:.2g}, {report.max_rel:.2g} of the outputs' "
        f"scale ({report.tolerance:g} is allowed)"
    )
    console.print(_table(report.checks))
    told = set()
    for check in report.checks:
        if check.reason and check.check not in told:
            told.add(check.check)
            console.print(f"- {check.check}, batch {check.batch}: {escape(check.reason)}")
    for flip in report.flips[:MOST_FLIPS]:
        console.print(
            f"- golden sample {flip.sample}: {escape(flip.reference)} became "
            f"{escape(flip.candidate)}, margin {flip.margin:.2g}"
            + (" (forgiven)" if flip.forgiven else "")
        )
    if len(report.flips) > MOST_FLIPS:
        console.print(f"- and {len(report.flips) - MOST_FLIPS} more changed labels")


def _table(checks: Sequence[ShapeParity]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "output", "", box=None, pad_edge=False)
    for name in ("batch", "max abs", "of scale"):
        table.add_column(name, justify="right")
    for check in checks:
        table.add_row(
            check.check,
            escape(check.output),
            "[green]ok[/]" if check.passed else "[red]FAILED[/]",
            str(check.batch),
            _number(check.max_abs),
            _number(check.max_rel),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
