"""tlexport import."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import ImportOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import ImportReport


@click.command(cls=Flagged)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to write."
)
@flags(ImportOptions)
@as_json
def command(output: Path, as_json: bool, **values: Any) -> None:
    """Take in a model that you already have, and write a bundle.

    One of --module, --huggingface, --backbone, --pt2 and --onnx says which. From there export,
    verify, package, serve and bench work as for a model that was trained here.

    \b
    Example:
      tlexport import -o net.bundle --module mypackage.net:make --weights net.pth \\
        --input 'pixels:float32[batch,3,64,64]=0..1'
      tlexport import -o beans.bundle --backbone torchvision/resnet18 \\
        --weights beans.pth --labels beans.txt --samples photos/
      tlexport import -o vit.bundle --huggingface vit-finetuned/
      tlexport import -o program.bundle --pt2 program.pt2 --samples real.npz
      tlexport import -o keras.bundle --onnx keras.onnx --samples real.npz --labels names.txt
    """
    from tlexport.cli import _terminal
    from tlexport.stages.import_ import import_model

    options = record(ImportOptions, values)
    with _terminal.progress() as progress:
        report = import_model(output, options, progress=progress)
    _terminal.show(report, as_json, draw)


def draw(report: ImportReport, console: Console) -> None:
    """What it takes and answers, what it will be compared with, and what to do next."""
    console.print(f"{report.source}, task {report.task}", markup=False)
    for side, tensors in (("takes", report.inputs), ("answers", report.outputs)):
        for tensor in tensors:
            console.print(f"  {side} {tensor}", markup=False)
    if report.labels:
        shown = ", ".join(report.labels[:5]) + (" ..." if len(report.labels) > 5 else "")
        console.print(f"{len(report.labels)} labels: {shown}", markup=False)
    console.print(f"golden samples: {report.samples}", markup=False)
    console.print(f"`verify` will compare with {report.reference}: {WHY[report.reference]}")
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"bundle: {report.bundle}", markup=False)
    console.print(f"next: tlexport export {shlex.quote(report.bundle)}", markup=False)


WHY = {
    "eager@cpu": "the original in PyTorch",
    "golden@bundle": "the answers that came with the samples",
    "ort@cpu-plain": "the imported file itself, unoptimised; it has no original here",
}
