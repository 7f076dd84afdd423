"""`tlexport lint`: a server's load rules, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.errors import RepositoryError
from tlexport.options import LintOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import LintFinding, LintReport


@click.command(cls=Flagged)
@click.argument("repository", default="model_repository")
@flags(LintOptions)
@click.option("--rules", is_flag=True, help="List every rule and end.")
@as_json
def command(repository: str, rules: bool, as_json: bool, **values: Any) -> None:
    """Hold a model repository against a Triton server's load rules, without a server.

    Tells what Triton's core and its ONNX Runtime backend would refuse, answer wrongly for, or
    read outside a model's folder (errors, exit code 8), and what is legal but costs something
    (warnings, exit code 0).

    \b
    Example:
      tlexport lint demo/model_repository
      tlexport lint demo/model_repository --triton 24.10
    """
    from tlexport.cli import _terminal
    from tlexport.stages.lint import lint, table

    if rules:
        _list(table(), as_json)
        return
    options = record(LintOptions, values)
    with _terminal.progress() as tell:
        report = lint(repository, options, progress=tell)
    _terminal.show(report, as_json, draw)
    if report.errors:
        raise refusal(report)


def refusal(report: LintReport) -> RepositoryError:
    """The error for a repository that a server would refuse."""
    first = next(each for each in report.findings if each.severity == "error")
    more = f" (and {report.errors - 1} more)" if report.errors > 1 else ""
    mends = any(each.fixable for each in report.findings)
    return RepositoryError(
        f"a repository {report.repository!r} that a Triton server loads",
        got=f"{first.file}: {first.rule}{more}",
        fix=f"{first.fix}{'; --fix makes the edits marked *' if mends else ''}",
    )


def draw(report: LintReport, console: Console) -> None:
    """What was changed, each finding with its fix, and the count."""
    from rich.markup import escape

    for file, lines in report.changed.items():
        console.print(f"changed {escape(file)}; as it was: {escape(file)}.orig")
        for line in lines:
            console.print(f"  {escape(line)}")
    for finding in report.findings:
        _draw_one(finding, console)
    held = f"Triton {report.triton}" if report.triton else "the Triton releases there are"
    verdict = "[red]FAILED[/]" if report.errors else "[green]passed[/]"
    console.print(
        f"{verdict}: {_counted(len(report.models), 'model')} against {held}: "
        f"{_counted(report.errors, 'error')}, {_counted(report.warnings, 'warning')}"
    )
    if not report.errors and "://" not in report.repository:
        console.print(f"next: tlexport serve {escape(report.repository)}")


def _draw_one(finding: LintFinding, console: Console) -> None:
    from rich.markup import escape

    colour = "red" if finding.severity == "error" else "yellow"
    place = finding.file + (f":{finding.line}" if finding.line else "")
    field = f" {finding.field}" if finding.field else ""
    mark = "*" if finding.fixable else ""
    console.print(
        f"[{colour}]{finding.severity}[/] [bold]{finding.rule}[/]{mark} {escape(place + field)}"
    )
    for name in ("expected", "got", "fix"):
        console.print(f"  {name + ':':9} {escape(getattr(finding, name))}")


def _list(rules: dict[str, tuple[str, str]], as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rules)).decode())
        return
    for name, (severity, says) in rules.items():
        click.echo(f"{name:22} {severity:8} {says}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
