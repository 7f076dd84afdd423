"""Labelled examples in, a bundle with a fine-tuned model out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.environment import launch
from tlexport.errors import BundleError, DataError
from tlexport.files import atomic_folder, cache_folder, text_of, write_atomic
from tlexport.measure.stats import wilson
from tlexport.options import TrainOptions
from tlexport.pages.train import page
from tlexport.progress import Progress, silent
from tlexport.reports import TrainReport
from tlexport.stages import _usable
from tlexport.stages._extractor import in_onnxruntime
from tlexport.stages._fitted import Fitted, csv_of
from tlexport.stages._output import model_name as model_name
from tlexport.stages._output import refuse_existing
from tlexport.tasks import Example, Examples, Learner
from tlexport.training import features, finish, head
from tlexport.training.split import split


def train(
    data: Path | str,
    output: Path | str,
    options: TrainOptions | None = None,
    *,
    progress: Progress = silent,
) -> TrainReport:
    """Fit a head on the frozen backbone's features, and write the bundle `output`.

    Where `options.adapt` says so the network's own weights are fitted as well, from there on. A run
    that was killed meanwhile goes on where it was, and ends with the same weights.

    Of several processes that were launched together (torchrun, srun) each computes its part of the
    features, fits the same head on all of them, and the first writes the bundle.

    Raises:
        OptionError: the task, backbone or weights are not to be had.
        DataError: the examples are not usable; broken files are listed, all of them.
        BundleError: `output` exists (without `force`) or cannot be written.
    """
    options = options or TrainOptions()
    output = Path(output)
    first = launch().rank == 0
    if first:
        refuse_existing(output, force=options.force)
    refuse_inside(output, Path(data))
    if options.adapt.active:
        from tlexport.training import adapt  # Lightning takes four seconds to import

        adapt.hold(options)
    task = plugins.load("tasks", options.task)
    read = task.read(Path(data), options.data)
    examples = split(read, fraction=options.val_fraction, seed=options.seed)
    learner = task.learner(options, examples)
    extraction = features.Extraction(
        task=task,
        learner=learner,
        cache=cache_folder() / "features",
        batch=options.batch,
        precision=options.feature_precision,
        faster=in_onnxruntime(task, learner),
    )
    start = time.perf_counter()
    whole = (*examples.train, *examples.val)
    found = features.compute(whole, extraction, progress)
    features_s = time.perf_counter() - start
    kept = _kept(whole, found, skip_broken=options.skip_broken)
    parts = _parts(examples, found.values, kept)
    _usable.hold_apart(parts[0].values)
    usable = [example for row, example in enumerate(whole) if kept[row]]
    count = len(parts[0].labels)
    ground = _Ground(task, learner, examples.labels, usable[:count], usable[count:], parts)
    start = time.perf_counter()
    fitted = _fitted(ground, output, options, progress)
    head_s = time.perf_counter() - start - (fitted.adapted.adapt_s if fitted.adapted else 0)
    report = TrainReport(
        bundle=str(output),
        task=options.task,
        backbone=options.backbone,
        weights=learner.source,
        labels=examples.labels,
        train_examples=len(parts[0].labels),
        val_examples=len(parts[1].labels),
        accuracy=wilson(round(fitted.best.val_accuracy * len(ground.val)), len(ground.val)),
        best=fitted.best,
        trials=fitted.trials,
        skipped=tuple(f"{text_of(whole[row].source)}: {why}" for row, why in found.broken.items()),
        notes=(*examples.notes, *learner.notes, *found.notes),
        features_reused=found.reused,
        features_s=features_s,
        features_by=found.runtime,
        head_s=head_s,
        seed=options.seed,
        val_fraction=options.val_fraction,
        adapted=fitted.adapted,
    )
    if first:
        _write(ground, fitted, report, options)
    return report


class _Ground(NamedTuple):
    """What a head is fitted on: usable examples, and the features of both parts."""

    task: ModuleType
    learner: Learner
    labels: tuple[str, ...]
    train: Sequence[Example]
    val: Sequence[Example]
    parts: tuple[head.Labelled, head.Labelled]


def _fitted(ground: _Ground, output: Path, options: TrainOptions, progress: Progress) -> Fitted:
    """A head on the frozen features, and where it is asked for the network's weights from there."""
    classes = len(ground.labels)
    best, trials = head.search(*ground.parts, classes, options, progress)
    if not options.adapt.active:
        return Fitted(best.head, best.report, trials)
    from tlexport.stages._adapted import adapted
    from tlexport.training import adapt

    weights = head.weights_of(ground.parts[0].labels, classes, options)
    frozen = best.report
    if options.class_weights:
        weighed = head.weighed_accuracy(best.head, ground.parts[1], weights)
        frozen = msgspec.structs.replace(frozen, val_weighed=weighed)
    work = adapt.Work(
        task=ground.task,
        learner=ground.learner,
        head=best.head,
        frozen=frozen,
        train=ground.train,
        val=ground.val,
        class_weights=weights,
        options=options,
    )
    return adapted(work, output, progress)


def _write(ground: _Ground, fitted: Fitted, report: TrainReport, options: TrainOptions) -> None:
    """The bundle, whole or not at all; what a killed run would have gone on from goes after it."""
    output, task = Path(report.bundle), ground.task
    model = finish.Model(
        task=task,
        spec=task.spec(options.name or model_name(output), ground.labels, ground.learner),
        learner=ground.learner,
        network=task.assemble(ground.learner, fitted.head),
    )
    golden = finish.golden_of(ground.val, options.golden, options.seed)
    with atomic_folder(output, replace=options.force) as folder:
        place = finish.write(folder, model, golden).write_report("train", report)
        if report.adapted is not None:
            write_atomic(place.with_suffix(".html"), page(report).encode())
            write_atomic(place.with_suffix(".csv"), csv_of(report.adapted.epochs))
    fitted.forget()


def refuse_inside(output: Path, data: Path) -> None:
    """A bundle among the examples would be taken for a class by the next run.

    Raises:
        BundleError: `output` lies below `data`.
    """
    if output.resolve().is_relative_to(data.resolve()):
        raise BundleError(
            "a bundle outside the folder of examples",
            got=f"{str(output)!r} inside {str(data)!r}",
            fix="name another place with -o: the next run would take the bundle for a class",
        )


def _kept(
    examples: Sequence[Example], found: features.Features, *, skip_broken: bool
) -> np.ndarray:
    """Which rows can be used: bool [examples].

    Raises:
        DataError: files are broken and may not be skipped, or features are not finite.
    """
    kept = np.ones(len(examples), dtype=bool)
    kept[list(found.broken)] = False
    if not skip_broken:
        _usable.hold_readable(examples, found.broken)
    _usable.hold_finite(examples, found.values, kept)
    return kept


def _parts(
    examples: Examples, values: np.ndarray, kept: np.ndarray
) -> tuple[head.Labelled, head.Labelled]:
    labels = np.array([e.label for e in (*examples.train, *examples.val)], dtype=np.int64)
    training = np.arange(len(labels)) < len(examples.train)
    parts = [
        head.Labelled(values=values[rows], labels=labels[rows])
        for rows in (kept & training, kept & ~training)
    ]
    present = {int(label) for label in parts[0].labels}
    if not len(parts[1].labels) or len(present) < len(examples.labels):
        lost = [name for number, name in enumerate(examples.labels) if number not in present]
        raise DataError(
            "readable files of each class to train on, and some to hold out",
            got=f"none left of {', '.join(lost)}" if lost else "none left to hold out",
            fix="mend the broken files or add others",
        )
    return parts[0], parts[1]
