"""tlexport export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import DataOptions, ExportOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import AccuracyCost, ExportReport, Interval, PrecisionReport

LISTED = 8


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(ExportOptions, but=("table",))
@flags(DataOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Export a bundle's model to a file that a Triton release can read.

    A --precision below fp32 is an artifact of its own beside onnx-fp32, made of that: name it with
    --artifact to verify, package and bench it.

    \b
    Example:
      tlexport export demo/digits.bundle --triton 24.10
      tlexport export demo/digits.bundle --precision int8 --data demo/digits \\
        --max-accuracy-drop 0.01
      tlexport export demo/digits.bundle --precision auto --data demo/digits
    """
    from tlexport.cli import _terminal
    from tlexport.stages.export import export

    with _terminal.progress() as progress:
        options = record(ExportOptions, values, table=record(DataOptions, values))
        report = export(bundle, options, progress=progress)
    _terminal.show(report, as_json, draw)


def draw(report: ExportReport, console: Console) -> None:
    """Which file, and who can read it."""
    console.print(f"{'kept' if report.reused else 'wrote'} {report.file}", markup=False)
    told = f"{report.size_bytes / 1e6:.1f} MB"
    if report.opset is not None:
        told += f", opset {report.opset}, IR {report.ir_version}"
    if report.triton_oldest != "none":
        told += f": read by Triton {report.triton_oldest} and newer"
    console.print(told)
    console.print(f"sha256 {report.sha256}", markup=False)
    if report.lowered is not None:
        _draw_lowered(report.lowered, console)
    for candidate in report.candidates:
        told = candidate.fault or "holds"
        if candidate.speedup is not None:
            told += f", {_speed(candidate.speedup)}"
        if candidate.accuracy is not None:
            told += f", accuracy {_change(candidate.accuracy)}"
        console.print(f"{candidate.artifact}: {told}", markup=False)
    if report.candidates:
        console.print(f"fastest that holds: {report.artifact}", markup=False)


def _draw_lowered(found: PrecisionReport, console: Console) -> None:
    """What it costs, what it brings, and what stayed in fp32."""
    told = f"{found.form}: {found.nodes - len(found.left)} of {found.nodes} nodes lowered"
    if found.calibration:
        told += f", calibrated ({found.calibration}) on {found.calibrated_on}"
    console.print(told, markup=False)
    for name, why in list(found.left.items())[:LISTED]:
        console.print(f"  in fp32: {name} ({why})", markup=False)
    if len(found.left) > LISTED:
        console.print(f"  ... and {len(found.left) - LISTED} more")
    if found.accuracy is not None:
        console.print(f"accuracy {_change(found.accuracy)}", markup=False)
    else:
        console.print("accuracy not judged: pass --data with labelled examples")
    console.print(f"answers off by {found.error:.2g} of their size on golden samples")
    console.print(f"speed at batch 1: {_speed(found.speedup)}")
    if found.speedup.low <= 1:
        console.print("[bold]warning: not faster than fp32 on this machine[/]")
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def _change(cost: AccuracyCost) -> str:
    change = cost.difference
    return (
        f"{cost.accuracy.value:.3f}, fp32 {cost.fp32.value:.3f}: {change.value:+.3f} "
        f"({change.low:+.3f} .. {change.high:+.3f}) on {cost.examples} held-out examples"
    )


def _speed(speed: Interval) -> str:
    return f"{speed.value:.2f}x fp32 ({speed.low:.2f} .. {speed.high:.2f})"
