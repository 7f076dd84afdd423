"""`tlexport manifests`: from one machine to many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import ManifestOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import ManifestsReport


@click.command(cls=Flagged)
@click.argument("repository", type=click.Path(path_type=Path), default=Path("model_repository"))
@flags(ManifestOptions)
@as_json
def command(repository: Path, as_json: bool, **values: Any) -> None:
    """Write what runs a model repository on many machines, from one template.

    compose.yaml with Prometheus and a Grafana dashboard; Kubernetes: Deployment, Service,
    PodMonitor, an autoscaler on the time that requests wait in Triton's queue; KServe:
    InferenceService and ServingRuntime. Cores and memory are what the models ask for. With
    --training-image also a Kubernetes Job that fine-tunes the model on several machines.

    \b
    Example:
      tlexport manifests demo/model_repository --name digits \\
        --storage-uri s3://models/digits --output demo/deploy
      tlexport manifests demo/model_repository --name digits --output demo/deploy \\
        --storage-uri s3://models/digits --training-image registry/training:1 --training-nodes 4
    """
    from tlexport.cli import _terminal
    from tlexport.stages.manifests import manifests

    options = record(ManifestOptions, values)
    with _terminal.progress() as tell:
        report = manifests(repository, options, progress=tell)
    _terminal.show(report, as_json, draw)


def draw(report: ManifestsReport, console: Console) -> None:
    """Which files, for what, and what to do with them."""
    for file in report.files:
        console.print(f"wrote {report.output}/{file}", markup=False)
    needed = f"{report.cores} cores, {report.memory_mib} MiB"
    needed += f", {report.gpus} GPU" if report.gpus else ""
    console.print(f"{', '.join(report.models)} on {report.image}: {needed} each", markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"next: docker compose -f {report.output}/compose.yaml up", markup=False)
    console.print(f"or:   kubectl apply -f {report.output}/kubernetes", markup=False)
