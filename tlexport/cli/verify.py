"""`tlexport verify`: prove a runtime equal to the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.errors import ParityError
from tlexport.options import DataOptions, RuntimeOptions, VerifyOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tlexport.reports import AccuracyChange, ParityReport, Walk

MOST_FLIPS = 10
AROUND = 4
"""Steps of the graph told before and after the first that is beyond rounding."""
WIDEST = 30
"""Characters told of a module's path: its end says more than its beginning."""


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(VerifyOptions, but=("columns",))
@flags(DataOptions)
@flags(RuntimeOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Ask the original and the export the same questions, and judge the answers.

    An answer may be off by a few times what rounding takes the original itself
    from its answer in float64. Exits with 3 where they differ; the report is
    printed and kept in BUNDLE/reports all the same (.json, and .html for people).

    \b
    Example:
      tlexport verify demo/digits.bundle
      tlexport verify demo/digits.bundle --explain
      tlexport verify demo/digits.bundle --candidate triton@localhost:8001
    """
    from tlexport.cli import _terminal
    from tlexport.stages.verify import verify

    options = record(VerifyOptions, values, columns=record(DataOptions, values))
    runtime = record(RuntimeOptions, values)
    with _terminal.progress() as tell:
        report = verify(bundle, options, runtime, progress=tell)
    _terminal.show(report, as_json, draw)
    if not report.passed:
        raise refusal(report)


def refusal(report: ParityReport) -> ParityError:
    """The error for a report that did not pass: its likeliest cause, or its first reason."""
    if report.causes:
        cause = report.causes[0]
        more = f" (and {len(report.causes) - 1} more causes)" if len(report.causes) > 1 else ""
        got, fix = f"{cause.name}: {cause.told}{more}", cause.fix
    else:
        got, fix = _first_reason(report), "look at the report for what differs"
    return ParityError(f"{report.candidate} to answer as {report.reference} does", got=got, fix=fix)


def _first_reason(report: ParityReport) -> str:
    reasons = [check.reason for check in report.checks if not check.passed]
    reasons += [f"golden sample {f.sample}: another label" for f in report.flips if not f.forgiven]
    if report.accuracy is not None and not report.accuracy.passed:
        reasons.append(_change(report.accuracy))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return (reasons or ["the report"])[0] + more


def draw(report: ParityReport, console: Console) -> None:
    """The verdict, one line per check, the first reason of each kind, causes, changed labels."""
    from rich.markup import escape

    verdict = "[green]passed[/]" if report.passed else "[red]FAILED[/]"
    console.print(
        f"{verdict}: {escape(report.candidate)} against {escape(report.reference)}, "
        f"{report.samples} golden samples"
    )
    console.print(_judged(report))
    console.print(_table(report))
    told = set()
    for check in report.checks:
        if check.reason and check.check not in told:
            told.add(check.check)
            console.print(f"- {escape(check.check)}, batch {check.batch}: {escape(check.reason)}")
    _draw_decisions(report, console)
    for note in report.notes:
        console.print(f"- note: {escape(note)}")
    if report.walk is not None:
        _draw_walk(report.walk, console)
    for number, cause in enumerate(report.causes, 1):
        console.print(f"cause {number}, [bold]{cause.name}[/]: {escape(cause.told)}")
        console.print(f"  fix: {escape(cause.fix)}")


def _judged(report: ParityReport) -> str:
    """The one number, and what it was held against."""
    if report.criterion == "noise floor" and report.factor is not None:
        precision = "" if report.precision == "fp32" else f" in {report.precision}"
        found = "beyond any multiple of" if report.ratio is None else f"{report.ratio:.3g}x"
        return (
            f"export error {found} the original's own rounding{precision} ({report.factor:g}x "
            "is allowed)"
        )
    largest = f"largest difference {report.max_abs:.2g}, {report.max_rel:.2g} of the outputs' scale"
    if report.criterion == "atol and rtol":
        allowed = f"atol {report.atol or 0:g}, rtol {report.rtol or 0:g}"
        return f"{largest} ({allowed} are allowed)"
    return f"{largest} ({report.tolerance:g} is allowed)"


def _draw_decisions(report: ParityReport, console: Console) -> None:
    from rich.markup import escape

    if report.decided is not None:
        told = f"labels: {report.decided.flips} of {report.decided.samples} changed"
        if report.decided.top5 is not None:
            told += f", {report.decided.top5:.1%} of the top 5 in common"
        if report.decided.largest_change is not None:
            told += f", largest change of a probability {report.decided.largest_change:.2g}"
        console.print(told)
    for flip in report.flips[:MOST_FLIPS]:
        console.print(
            f"- golden sample {flip.sample}: {escape(flip.reference)} became "
            f"{escape(flip.candidate)}, margin {flip.margin:.2g}"
            + (" (forgiven)" if flip.forgiven else "")
        )
    if len(report.flips) > MOST_FLIPS:
        console.print(f"- and {len(report.flips) - MOST_FLIPS} more changed labels")
    if report.accuracy is not None:
        console.print(_change(report.accuracy))


def _change(found: AccuracyChange) -> str:
    """Both accuracies and their difference, in words."""
    change = found.difference
    return (
        f"accuracy {found.candidate:.4f}, {found.reference:.4f} of the reference, on "
        f"{found.examples} examples: {change.value:+.4f} ({change.low:+.4f} .. {change.high:+.4f};"
        f" McNemar p {found.p_value:.2g}; a loss of {found.allowed:g} is allowed)"
    )


def _draw_walk(walk: Walk, console: Console) -> None:
    """The graph about its first value beyond the floor, or where it is farthest off."""
    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"{walk.compared} of {walk.values} values of the graph were held against {walk.against}"
    )
    steps, count = list(walk.steps), 2 * AROUND + 1
    if walk.first in steps:
        start = max(0, steps.index(walk.first) - AROUND)
        shown = steps[start : start + count]
    else:  # nothing is at fault: those that are farthest off
        worst = sorted(steps, key=lambda step: -(step.ratio or 0.0))[:count]
        shown = [step for step in steps if step in worst]
    table = Table("operator", "value", "module", box=None, pad_edge=False)
    for name in ("of norm", "x rounding"):
        table.add_column(name, justify="right")
    for step in shown:
        style = "red" if step == walk.first else ""
        module = step.module if len(step.module) <= WIDEST else f"…{step.module[1 - WIDEST :]}"
        cells = (step.operator, step.value, module, _number(step.error), _number(step.ratio))
        table.add_row(*map(escape, cells), style=style)
    console.print(table)


def _table(report: ParityReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    floor = report.criterion == "noise floor"
    table = Table("check", "output", "", box=None, pad_edge=False)
    for name in ("batch", "max abs", "x rounding" if floor else "of scale"):
        table.add_column(name, justify="right")
    for check in report.checks:
        table.add_row(
            escape(check.check),
            escape(check.output),
            "[green]ok[/]" if check.passed else "[red]FAILED[/]",
            str(check.batch),
            _number(check.max_abs),
            _number(check.ratio if floor else check.max_rel),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
