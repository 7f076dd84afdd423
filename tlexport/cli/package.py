"""`tlexport package`: a verified model into a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import PackageOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import PackageReport


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-r",
    "--repository",
    default="model_repository",
    show_default=True,
    help="What a Triton server serves: a folder, or s3://, gs://, az:// or as:// with a path.",
)
@flags(PackageOptions)
@as_json
def command(bundle: Path, repository: str, as_json: bool, **values: Any) -> None:
    """Write the next version of the model into a Triton model repository.

    Refused with exit code 3 unless `tlexport verify` has passed this very file.

    \b
    Example:
      tlexport package demo/digits.bundle -r demo/model_repository
      tlexport package demo/digits.bundle -r demo/other --max-batch 4
      tlexport package demo/digits.bundle -r demo/model_repository --pipeline
    """
    from tlexport.cli import _terminal
    from tlexport.stages.package import package

    options = record(PackageOptions, values)
    with _terminal.progress() as tell:
        report = package(bundle, repository, options, progress=tell)
    _terminal.show(report, as_json, draw)


def draw(report: PackageReport, console: Console) -> None:
    """Where the version is, how it will be served, and what to do next."""
    from rich.markup import escape

    console.print(
        f"{escape(report.model)} version {report.version} in {escape(report.repository)}, "
        f"sha256 {report.artifact_sha256[:12]}"
    )
    batching = f"batches up to {report.max_batch}" if report.max_batch else "no batching"
    console.print(
        f"{batching}, {report.instances} x {report.threads} threads on {report.cores} cores, "
        f"Triton {report.triton_oldest} or newer"
    )
    for file in report.files:
        console.print(f"  {escape(report.model)}/{escape(file)}")
    if report.pipeline:
        around = " and ".join(escape(step) for step in report.steps if step != report.model)
        console.print(f"raw files in, labels out: {escape(report.pipeline)}, by {around}")
    if "://" not in report.repository:
        console.print(f"next: tlexport serve {escape(report.repository)}")
