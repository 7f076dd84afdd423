"""Batches come one ahead, and nothing is left running behind the last."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import digits as digit_scans
import numpy as np

from tlexport.tasks import image_classification
from tlexport.training.stream import Source


def test_who_takes_the_last_batch_has_nothing_to_wait_for(tmp_path: Path) -> None:
    """A thread to be joined when the iterator is cleared away would swallow a Ctrl-C there."""
    scans = digit_scans.write(tmp_path / "digits", per_class=2)
    examples = image_classification.read(scans).train
    preprocess = {
        "size": [8, 8],
        "resize": [8, 8],
        "mode": "squash",
        "interpolation": "bilinear",
        "background": [0, 0, 0],
    }
    source = Source(
        task=image_classification,
        learner=SimpleNamespace(preprocess=preprocess, files={}),
        examples=examples,
        most=8,
        weights=np.ones(10),
    )
    before = threading.active_count()
    for count in (0, 1, 3):
        steps = source.steps(seed=0, epoch=1)[:count]
        batches = iter(source.stream(steps))
        labels = [next(batches).labels.tolist() for _ in steps]
        assert labels == [[examples[row].label for row in step] for step in steps]
        assert threading.active_count() == before
        assert next(batches, None) is None
