"""`tlexport bench`: what each way of running it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import as_json, flags, record
from tlexport.options import BenchOptions, RuntimeOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tlexport.reports import BenchReport, BenchRow, Interval

NAME = 22
"""Longest runtime written in one line: triton@127.0.0.1:45678."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(BenchOptions)
@flags(RuntimeOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Measure runtimes side by side on the golden samples; they take turns.

    \b
    Example:
      tlexport bench demo/digits.bundle --runtime eager@cpu --runtime ort@cpu \\
        --runtime triton@localhost:8001 --batch 1 --batch 8
    """
    from tlexport.cli import _terminal
    from tlexport.stages.bench import bench

    options, runtime = record(BenchOptions, values), record(RuntimeOptions, values)
    with _terminal.progress() as tell:
        report = bench(bundle, options, runtime, progress=tell)
    _terminal.show(report, as_json, draw)


def draw(report: BenchReport, console: Console) -> None:
    """One table per batch size; what needs a word stands below."""
    from rich.markup import escape

    console.print(
        f"{escape(report.model)}: {report.load}, {report.threads} threads, "
        f"{report.rounds} rounds of {report.round_s:g} s"
    )
    console.print("ranges are 95 % intervals; speed is relative to the first row", markup=False)
    for batch in dict.fromkeys(row.batch for row in report.rows):
        rows = [row for row in report.rows if row.batch == batch]
        console.print()
        console.print(_table(batch, rows))
    for note in _notes(report):
        console.print(escape(note))


def _table(batch: int, rows: list[BenchRow]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"batch {batch}", title_justify="left")
    table.add_column("runtime", overflow="fold")
    for title in ("p50 ms", "p90", "p95", "p99", "items/s", "speed"):
        table.add_column(title, justify="right")
    for row in rows:
        tails = (row.p90_ms, row.p95_ms, row.p99_ms)
        name = row.runtime if len(row.runtime) <= NAME else row.runtime.replace("@", "@\n", 1)
        cells = [name, _bounded(row.p50_ms)]
        cells += ["-" if tail is None else _three(tail.value) for tail in tails]
        cells += [_bounded(row.items_per_s), _speed(row, first=row is rows[0])]
        table.add_row(*map(escape, cells))
    return table


def _speed(row: BenchRow, *, first: bool) -> str:
    if first:
        return "1"
    told = f"{row.speedup.value:.2f}x\n{row.speedup.low:.2f}-{row.speedup.high:.2f}"
    return told if row.different else told + " ="


def _bounded(found: Interval | None) -> str:
    """The estimate, its interval below it."""
    if found is None:
        return "-"
    return f"{_three(found.value)}\n{_three(found.low)}-{_three(found.high)}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(report: BenchReport) -> list[str]:
    notes = []
    others = [row for row in report.rows if row.runtime != report.rows[0].runtime]
    if any(not row.different for row in others):
        notes.append("=  no significant difference from the first row")
    if any(row.p99_ms is None for row in report.rows):
        notes.append("-  too few requests: p50 needs 6, p90 36, p95 72, p99 368")
    known = {sha for name, sha in report.digests.items() if name not in ("weights", "golden")}
    for row in report.rows:
        where = f"{row.runtime}, batch {row.batch}"
        if row.queue_ms is not None and row.compute_ms is not None:
            notes.append(
                f"{where}: by its own statistics {row.queue_ms:.2f} ms in the queue and "
                f"{row.compute_ms:.2f} ms computing per request"
            )
        served = row.facts.get("artifact_sha256")
        if served and known and served not in known:
            notes.append(f"{where}: ANOTHER MODEL, its file is {served[:12]}, not this bundle's")
        if row.errors:
            notes.append(f"{where}: {row.errors} requests failed, {row.requests} were answered")
    return ["", *notes] if notes else []
