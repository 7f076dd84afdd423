"""`tlexport serve`: a Triton server on a model repository."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import ServeOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import ServedModel, ServeReport


@click.command(cls=Flagged)
@click.argument("repository", type=click.Path(path_type=Path), default=Path("model_repository"))
@flags(ServeOptions)
@as_json
def command(repository: Path, as_json: bool, **values: Any) -> None:
    """Serve a model repository with a real Triton server until Ctrl-C.

    Each model that `tlexport package` wrote is asked a golden sample before the server is called
    ready. Needs no Docker on Linux x86-64; on first use about 75 MB are fetched.

    \b
    Example:
      tlexport serve demo/model_repository
      tlexport serve demo/model_repository --grpc-port 8001 --control poll
    """
    from tlexport.cli import _terminal
    from tlexport.stages.serve import serve

    options = record(ServeOptions, values)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _terminal.progress() as tell:
            serving = serve(repository, options, progress=tell)
        with serving:
            with contextlib.suppress(KeyboardInterrupt):  # how a server is stopped: no error
                _terminal.show(serving.report, as_json, draw)
                serving.wait()
            click.echo("Stopping the server ...", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Take SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def draw(report: ServeReport, console: Console) -> None:
    """Where the server listens, what it serves, and what to try."""
    from rich.markup import escape

    console.print(f"{report.server} Triton server ready in {report.ready_s:.1f} s: {report.reason}")
    for model in report.models:
        console.print(f"  {escape(model.name)} version {model.version}: {escape(_checked(model))}")
    console.print(f"gRPC {report.grpc}  HTTP {report.http}  metrics {report.metrics}")
    console.print(f"try:  curl -i http://{report.http}/v2/health/ready")
    named = f" --model {escape(_shown(report).name)}" if len(report.models) > 1 else ""
    console.print(f"next: tlexport predict triton@{report.grpc} FILE{named}")
    console.print("Ctrl-C stops it.")


def _checked(model: ServedModel) -> str:
    """What a golden sample said of a model."""
    if model.step_of:
        return f"a step of {model.step_of}"
    if model.golden_max_abs is None:
        return "no golden sample to ask"
    if model.golden_label:
        told = f"golden file answered {model.golden_label!r}"
        return f"{told}, probability off by {model.golden_max_abs:.2g}"
    return f"golden sample answered, difference {model.golden_max_abs:.2g}"


def _shown(report: ServeReport) -> ServedModel:
    """The model to try: one that takes files as they are, if there is one."""
    return next((model for model in report.models if model.golden_label), report.models[0])
