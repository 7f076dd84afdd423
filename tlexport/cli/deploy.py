"""`tlexport deploy`: a verified model goes live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import DeployOptions, PackageOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tlexport.errors import TlexportError
    from tlexport.reports import DeployReport, Fault, GateCheck


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", default="model_repository")
@flags(DeployOptions, but=("packaging",))
@flags(PackageOptions)
@as_json
def command(bundle: Path, repository: str, as_json: bool, **values: Any) -> None:
    """Have a running server serve the model, once it has answered the golden samples.

    REPOSITORY is the one that the server serves, a folder or s3://, gs://, az:// or as://; the
    server runs with `tlexport serve --control explicit`. The version is loaded under another name
    and asked; only then does it replace the one in service. Otherwise that one stays, and the exit
    code is 3, or 9 where the server refused to load it. A model with a pipeline for raw files
    changes with it: the golden files are asked as well.

    \b
    Example:
      tlexport deploy demo/digits.bundle demo/model_repository --server localhost:8001
    """
    from tlexport.cli import _terminal
    from tlexport.stages.deploy import deploy

    options = record(DeployOptions, values, packaging=record(PackageOptions, values))
    with _terminal.progress() as tell:
        report = deploy(bundle, repository, options, progress=tell)
    _terminal.show(report, as_json, draw)
    if report.fault is not None:
        raise refusal(report.fault)


def refusal(fault: Fault) -> TlexportError:
    """The error that a report keeps, with its exit code."""
    from tlexport import errors

    kind: type[TlexportError] = getattr(errors, fault.kind)
    return kind(fault.expected, got=fault.got, fix=fault.fix)


def draw(report: DeployReport, console: Console) -> None:
    """The verdict, what was asked, and what serves now."""
    from rich.markup import escape

    verdict = "[green]passed[/]" if report.passed else "[red]FAILED[/]"
    console.print(
        f"{verdict}: {escape(both(report.model, report.pipeline))} version {report.version} "
        f"({escape(report.artifact)}, sha256 {report.artifact_sha256[:12]}) "
        f"on {escape(report.server)}"
    )
    draw_checks(report.checks, console)
    if report.load_s is not None:
        change = f", changed over in {report.change_s:.1f} s" if report.change_s else ""
        console.print(f"loaded in {report.load_s:.1f} s{change}")
    if report.removed:
        console.print(f"removed from the disk: {', '.join(map(str, report.removed))}")
    for note in report.notes:
        console.print(f"- note: {escape(note)}")
    console.print(f"in service: {told(report.served)}, before: {told(report.before)}")
    if report.passed and report.before is not None:
        console.print(
            f"back: tlexport rollback {escape(report.repository)} --name {escape(report.model)} "
            f"--server {escape(report.server)}"
        )


def draw_checks(checks: Sequence[GateCheck], console: Console) -> None:
    """A line for each way that the golden samples were asked, and the first reason of each."""
    from rich.markup import escape

    for asked in dict.fromkeys(check.asked for check in checks):
        mine = [check for check in checks if check.asked == asked]
        sizes = ", ".join(map(str, dict.fromkeys(check.batch for check in mine)))
        furthest = max(mine, key=lambda check: (check.max_abs or 0.0) / (check.allowed or 1.0))
        off = "none" if furthest.max_abs is None else f"{furthest.max_abs:.2g}"
        console.print(
            f"  {asked}: {mine[0].samples} golden samples at batch {sizes}, largest difference "
            f"{off} of {furthest.allowed:.2g} allowed"
        )
        for check in [check for check in mine if not check.passed][:1]:
            console.print(f"  - batch {check.batch}: {escape(check.reason)}")


def both(model: str, pipeline: str) -> str:
    """A model, and the pipeline that changed with it."""
    return f"{model} with {pipeline}" if pipeline else model


def told(version: int | None) -> str:
    """A version by its number."""
    return "none" if version is None else f"version {version}"
