"""tlexport export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import as_json, flags, record
from tlexport.options import ExportOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import ExportReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(ExportOptions)
@as_json
def command(bundle: Path, as_json: bool, **values: Any) -> None:
    """Export a bundle's model to a file that a Triton release can read.

    \b
    Example:
      tlexport export demo/digits.bundle --triton 24.10
    """
    from tlexport.cli import _terminal
    from tlexport.stages.export import export

    with _terminal.progress() as progress:
        report = export(bundle, record(ExportOptions, values), progress=progress)
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
