"""A run that adapts weights: kept until its bundle is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tlexport.environment import launch
from tlexport.files import cache_folder, write_atomic
from tlexport.progress import Progress
from tlexport.reports import EpochReport
from tlexport.stages._fitted import Fitted, csv_of
from tlexport.training import checkpoint
from tlexport.training.adapt import Desk, Work, adapt, key_of


def adapted(work: Work, output: Path, progress: Progress) -> Fitted:
    """Fit the network's own weights; its epochs stand in OUTPUT.epochs.csv while it lasts.

    Raises:
        OptionError: the backbone has fewer blocks, or nothing that adapters could be put on.
        BundleError: the same run is under way already, or nothing can be written.
    """
    folder = cache_folder() / "runs" / key_of(work)
    live = output.with_name(f"{output.name}.epochs.csv")

    def note(epochs: Sequence[EpochReport]) -> None:
        if launch().rank == 0:
            write_atomic(live, csv_of(epochs))

    with checkpoint.alone(folder):
        resumed = checkpoint.is_begun(folder)
        began = time.perf_counter()
        name = f"{output.stem}-{folder.name[:6]}"
        found = adapt(work, Desk(folder=folder, name=name, progress=progress, note=note))
        told = msgspec.structs.replace(
            found.report, adapt_s=time.perf_counter() - began, resumed=resumed
        )
    return Fitted(found.head, found.best, found.trials, told, (folder, live))
