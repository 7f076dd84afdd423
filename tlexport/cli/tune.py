"""`tlexport tune`: the settings that serve most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import TuneOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import TuneReport, TuneTrial

LISTED = 8


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(TuneOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Find how to serve a bundle's artifact: the most throughput within a latency.

    Tries instances, threads, batch sizes, queue delays and preferred sizes on a real server under
    load. Each trial is kept as it ends: the same command goes on where it was stopped.

    \b
    Example:
      tlexport tune demo/digits.bundle --slo p99=60ms --trials 6 --concurrency 4
    """
    from tlexport.cli import _terminal
    from tlexport.stages.tune import tune

    options = record(TuneOptions, values)
    with _terminal.progress() as tell:
        report = tune(bundle, options, progress=tell)
    _terminal.show(report, as_json, draw)


def draw(report: TuneReport, console: Console) -> None:
    """The best few and the default, what the best gains, and how to package it so."""
    from rich.markup import escape
    from rich.table import Table

    name = report.slo.split("=")[0]
    console.print(
        f"{escape(report.model)}, {escape(report.artifact)}: the most within {report.slo}; "
        f"{len(report.trials)} of {report.space} settings tried"
        + (f", {report.resumed} of them before" if report.resumed else "")
    )
    table = Table(box=None, pad_edge=False)
    for title in ("inst.", "threads", "batch", "wait ms", "preferred", "items/s", "flight", name):
        table.add_column(title, justify="right")
    ordered = sorted(report.trials, key=lambda t: t.best.items_per_s if t.best else 0, reverse=True)
    shown = ordered[:LISTED]
    if report.default not in shown:
        shown.append(report.default)
    for trial in shown:
        table.add_row(*_cells(trial), style="bold" if trial == report.best else "")
    console.print(table)
    console.print(f"stopped: {report.stopped}", markup=False)
    if report.gain is not None:
        told = (
            f"{report.gain.value:.2f}x the default's ({report.gain.low:.2f}-{report.gain.high:.2f})"
        )
        same = "" if report.different else ": no significant difference"
        console.print(f"in turns with the default: {told}{same}", markup=False)
    elif report.best == report.default:
        console.print("the default is the best of them", markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"plot: {report.page}", markup=False)
    console.print(f"configuration: {report.config}", markup=False)
    if report.gain is not None and not report.different:
        console.print("next: keep the default, tlexport package BUNDLE", markup=False)
        return
    settings = report.best.settings
    flags = f"--instances {settings.instances} --threads {settings.threads}"
    flags += f" --max-batch {settings.max_batch} --queue-delay-us {settings.queue_delay_us}"
    flags += "".join(f" --preferred-batch {size}" for size in settings.preferred)
    flags += "" if report.artifact == "onnx-fp32" else f" --artifact {report.artifact}"
    console.print(f"next: tlexport package BUNDLE {flags}", markup=False)


def _cells(trial: TuneTrial) -> list[str]:
    settings = trial.settings
    best = trial.best
    numbers = ["-"] * 3
    if best is not None:
        sure = "" if best.sure else "?"
        numbers = [
            f"{best.items_per_s:,.0f}" if best.items_per_s >= 100 else f"{best.items_per_s:.3g}",
            str(best.concurrency),
            f"{best.quantile_ms:.3g}{sure}",
        ]
    return [
        str(settings.instances),
        str(settings.threads),
        str(settings.max_batch),
        f"{settings.queue_delay_us / 1000:g}",
        " ".join(map(str, settings.preferred)) or "-",
        *numbers,
    ]
