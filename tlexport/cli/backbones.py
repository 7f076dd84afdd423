"""tlexport backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tlexport.cli._flags import as_json

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import BackbonesReport


@click.command()
@click.argument("pattern", default="*")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the pre-trained networks that `train --backbone` takes.

    PATTERN is a part of the name, or a glob.

    \b
    Example:
      tlexport backbones 'torchvision/*'
    """
    from tlexport.cli import _terminal
    from tlexport.plugins import unknown
    from tlexport.stages.backbones import list_backbones

    report = list_backbones(pattern)
    if not report.backbones:
        raise unknown("backbone", pattern, list_backbones().backbones)
    _terminal.show(report, as_json, draw)


def draw(report: BackbonesReport, console: Console) -> None:
    """One name a line, so that grep and completion can use it."""
    for name in report.backbones:
        console.print(name, markup=False)
    for line in report.missing:
        console.print(f"left out: {line}", markup=False)
