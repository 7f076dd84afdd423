"""`tlexport rollback`: the version before serves again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import RollbackOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import RollbackReport


@click.command(cls=Flagged)
@click.argument("repository", default="model_repository")
@flags(RollbackOptions)
@as_json
def command(repository: str, as_json: bool, **values: Any) -> None:
    """Have a running server serve the version before the one in service.

    It is loaded under another name and asked its golden samples first, as in `tlexport deploy`;
    where it fails nothing changes. A second time goes back one more. A pipeline goes back with
    its model.

    \b
    Example:
      tlexport rollback demo/model_repository --server localhost:8001
    """
    from tlexport.cli import _terminal
    from tlexport.cli.deploy import refusal
    from tlexport.stages.rollback import rollback

    options = record(RollbackOptions, values)
    with _terminal.progress() as tell:
        report = rollback(repository, options, progress=tell)
    _terminal.show(report, as_json, draw)
    if report.fault is not None:
        raise refusal(report.fault)


def draw(report: RollbackReport, console: Console) -> None:
    """The verdict, what was asked, and what serves now."""
    from rich.markup import escape

    from tlexport.cli.deploy import both, draw_checks, told

    verdict = "[green]passed[/]" if report.passed else "[red]FAILED[/]"
    console.print(
        f"{verdict}: {escape(both(report.model, report.pipeline))} back to version "
        f"{report.version} on {escape(report.server)}"
    )
    draw_checks(report.checks, console)
    for note in report.notes:
        console.print(f"- note: {escape(note)}")
    console.print(f"in service: {told(report.served)}, before: {told(report.before)}")
    left = ", ".join(map(str, reversed(report.left))) or "none"
    console.print(f"versions to go back to from here: {left}")
