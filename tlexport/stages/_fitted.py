"""What training came to, before it is a bundle."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tlexport.reports import AdaptReport, EpochReport, TrialReport
from tlexport.training.head import Head


class Fitted(NamedTuple):
    """The head to assemble, how it came about, and what to remove once its bundle is there."""

    head: Head
    best: TrialReport
    trials: tuple[TrialReport, ...]
    adapted: AdaptReport | None = None
    kept: tuple[Path, ...] = ()

    def forget(self) -> None:
        """Remove what a killed run would have gone on from."""
        for path in self.kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def csv_of(epochs: Sequence[EpochReport]) -> bytes:
    """A row per epoch under the names of `EpochReport`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in msgspec.structs.fields(EpochReport))
    writer.writerows(msgspec.structs.astuple(epoch) for epoch in epochs)
    return text.getvalue().encode()
