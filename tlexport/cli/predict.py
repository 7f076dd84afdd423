"""tlexport predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.errors import DataError
from tlexport.options import PredictOptions, RuntimeOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import PredictReport


@click.command(cls=Flagged)
@click.argument("source")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@flags(PredictOptions)
@flags(RuntimeOptions)
@as_json
def command(source: str, files: tuple[Path, ...], as_json: bool, **values: Any) -> None:
    """Label raw FILES with a bundle's model or with a running server.

    SOURCE is a bundle, or triton@HOST:PORT (the server tells labels and preprocessing).

    \b
    Example:
      tlexport predict demo/digits.bundle demo/digits/3/*.png
      tlexport predict triton@localhost:8001 demo/digits/3/0003.png
    """
    from tlexport.cli import _terminal
    from tlexport.stages.predict import predict

    options, runtime = record(PredictOptions, values), record(RuntimeOptions, values)
    report = predict(source, files, options, runtime)
    _terminal.show(report, as_json, draw)
    broken = [p for p in report.predictions if p.error]
    if broken:
        raise DataError(
            "files that can be read",
            got=f"{len(broken)} of {len(report.predictions)} broken: "
            + "; ".join(f"{p.source}: {p.error}" for p in broken),
            fix="mend or leave out these; the others are answered above",
        )


def draw(report: PredictReport, console: Console) -> None:
    """One line a file: its labels, likeliest first."""
    for prediction in report.predictions:
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        told = ", ".join(f"{label} {probability:.3f}" for label, probability in pairs)
        console.print(f"{prediction.source}: {told or prediction.error}", markup=False)
