"""A network that takes part: its features, file and runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.environment import versions
from tlexport.errors import (
    BundleError,
    DataError,
    ExportError,
    MissingDependency,
    OptionError,
    SpecError,
    TlexportError,
)
from tlexport.files import atomic_folder, cache_folder, sha256_of_json, write_atomic
from tlexport.options import Entry, ExportOptions, RuntimeOptions, SelectOptions, TrainOptions
from tlexport.progress import Progress
from tlexport.stages import _usable
from tlexport.stages._extractor import in_onnxruntime
from tlexport.tasks import Example, Examples, Learner
from tlexport.traffic.asker import MOST_QUESTIONS
from tlexport.traffic.cells import Cell, Point
from tlexport.traffic.clients import Order, client
from tlexport.training import crossing, features, finish

NAME = "candidate"
TARGET = "onnx"
VERSION = 1
"""Raise it when the same network would become another file than before."""

NOT_TO_BE_HAD = (OptionError, DataError, MissingDependency)
NOT_TO_BE_RUN = (DataError, ExportError, SpecError, BundleError)
"""What leaves a network out; anything else is wrong with all of them and ends the comparison."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """What all networks stand on: `known` are all examples there are, `examples` those compared on.

    `work` is a folder for the time being, `stack` closes what was opened.
    """

    task: ModuleType
    options: SelectOptions
    known: Examples
    examples: Sequence[Example]
    work: Path
    stack: contextlib.ExitStack
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A network that is ready to be asked; `file_bytes` are those of its exported file."""

    entry: Entry
    source: str
    width: int
    notes: tuple[str, ...]
    found: features.Features
    features_s: float
    parameters: int
    file_bytes: int
    export_s: float
    export_reused: bool
    cell: Cell


def contenders(
    entries: Sequence[Entry], field: Field
) -> tuple[list[Contender], list[tuple[Entry, TlexportError]]]:
    """All networks that can be had and run, one after the other, and why the others cannot.

    Raises:
        DataError: examples are broken, and may not be left out.
        OptionError, MissingDependency: the runtime is not to be had.
        BundleError: what is made on the way cannot be written.
    """
    ready: list[Contender] = []
    left: list[tuple[Entry, TlexportError]] = []
    for number, entry in enumerate(entries):
        try:
            learner, found, seconds = _looked(entry, field)
        except NOT_TO_BE_HAD as error:
            left.append((entry, error))
            continue
        if not field.options.skip_broken:
            _usable.hold_readable(field.examples, found.broken)
        made = _Made(entry, learner, found, seconds)
        try:
            _hold_usable(field, found)
            network = _assembled(field, learner)
            bundle = _bundled(made, field, network, field.work / f"{number}")
            exported = _exported(bundle, field, network, learner)
        except NOT_TO_BE_RUN as error:
            if _cannot_write(error):
                raise
            left.append((entry, error))
            continue
        try:
            ready.append(_opened(made, field, bundle, exported))
        except NOT_TO_BE_RUN as error:
            left.append((entry, error))
    return ready, left


@dataclasses.dataclass(frozen=True)
class _Made:
    entry: Entry
    learner: Learner
    found: features.Features
    features_s: float


@dataclasses.dataclass(frozen=True)
class _Exported:
    file_bytes: int
    seconds: float
    reused: bool
    parameters: int


def _looked(entry: Entry, field: Field) -> tuple[Learner, features.Features, float]:
    """The network with its weights, its features of the examples, and the seconds for both."""
    options = field.options
    start = time.perf_counter()
    learner = field.task.learner(
        TrainOptions(
            task=options.task,
            backbone=entry.backbone,
            weights=entry.weights,
            seed=options.seed,
            max_length=options.max_length,
            max_seconds=options.max_seconds,
        ),
        field.known,
    )
    extraction = features.Extraction(
        task=field.task,
        learner=learner,
        cache=cache_folder() / "features",
        batch=options.batch,
        faster=in_onnxruntime(field.task, learner),
    )
    found = features.compute(field.examples, extraction, _named(field.progress, entry))
    return learner, found, time.perf_counter() - start


def _named(progress: Progress, entry: Entry) -> Progress:
    """The same with the network's name before what is done."""

    def tell(what: str, done: int, total: int | None = None) -> None:
        progress(f"{entry.backbone}: {what}", done, total)

    return tell


def _hold_usable(field: Field, found: features.Features) -> None:
    """Refuse features of NaN, or that are the same for all.

    Raises:
        DataError: they are.
    """
    kept = readable(len(field.examples), found.broken)
    _usable.hold_finite(field.examples, found.values, kept)
    _usable.hold_apart(found.values[kept])


def readable(count: int, broken: Mapping[int, str]) -> np.ndarray:
    """Which rows are not `broken`: bool [count]."""
    kept = np.ones(count, dtype=bool)
    kept[list(broken)] = False
    return kept


def _assembled(field: Field, learner: Learner) -> finish.Model:
    """The network under a head that nobody trained: its cost is the same."""
    labels = field.known.labels
    head = crossing.untrained(learner.width, len(labels), field.options.seed)
    return finish.Model(
        task=field.task,
        spec=field.task.spec(NAME, labels, learner),
        learner=learner,
        network=field.task.assemble(learner, head),
    )


def _bundled(made: _Made, field: Field, model: finish.Model, place: Path) -> Bundle:
    """A bundle of it with a few of the examples, for as long as it is asked."""
    kept = readable(len(field.examples), made.found.broken)
    whole = [example for row, example in enumerate(field.examples) if kept[row]]
    place.mkdir(parents=True)
    return finish.write(place, model, finish.golden_of(whole, MOST_QUESTIONS, field.options.seed))


def _exported(bundle: Bundle, field: Field, model: finish.Model, learner: Learner) -> _Exported:
    """Its file, out of the cache where an earlier comparison left it, else made and left there.

    Raises:
        ExportError: it cannot be exported.
        BundleError: the cache cannot be written.
    """
    start = time.perf_counter()
    key = sha256_of_json(
        {
            "version": VERSION,
            "weights": bundle.manifest.weights_sha256,
            "spec": bundle.spec,
            "network": learner.network,
            "versions": versions(),
        }
    )
    kept = cache_folder() / "candidates" / key
    reused = _taken_over(bundle, kept)
    if not reused:
        target = plugins.load("targets", TARGET)
        with tempfile.TemporaryDirectory(dir=field.work, prefix="export.") as folder:
            made: Artifact = target.export(bundle, Path(folder), ExportOptions(target=TARGET))
            bundle.add_artifact(made, Path(folder))
        _keep(bundle, made, kept)
    artifact = bundle.artifact(f"{TARGET}-fp32")
    root = bundle.root / "artifacts" / artifact.name
    return _Exported(
        file_bytes=sum((root / file).stat().st_size for file in artifact.files),
        seconds=time.perf_counter() - start,
        reused=reused,
        parameters=sum(tensor.numel() for tensor in model.network.parameters()),
    )


def _keep(bundle: Bundle, artifact: Artifact, kept: Path) -> None:
    with atomic_folder(kept, replace=True) as folder:
        for file in artifact.files:
            content = (bundle.root / "artifacts" / artifact.name / file).read_bytes()
            write_atomic(folder / file, content)
        write_atomic(folder / "artifact.json", msgspec.json.encode(artifact))


def _taken_over(bundle: Bundle, kept: Path) -> bool:
    """Put what the cache holds into the bundle; False where it holds nothing, or it is damaged."""
    try:
        artifact = msgspec.json.decode((kept / "artifact.json").read_bytes(), type=Artifact)
        bundle.add_artifact(artifact, kept)
        bundle.artifact(artifact.name)
    except (OSError, msgspec.DecodeError, BundleError):  # made again
        return False
    return True


def _cannot_write(error: TlexportError) -> bool:
    """Whether the system refused a write: that is no fault of the network."""
    return isinstance(error, BundleError) and isinstance(error.__cause__, OSError)


def _opened(made: _Made, field: Field, bundle: Bundle, exported: _Exported) -> Contender:
    """The runtime that was asked for, open, and asked once."""
    order = Order(
        runtime=field.options.runtime,
        bundle=str(bundle.root),
        options=RuntimeOptions(threads=field.options.threads),
        batches=(1,),
    )
    opened = client(bundle, order, processes=1, concurrency=1)
    field.stack.callback(opened.close)
    opened.check(1)
    return Contender(
        entry=made.entry,
        source=made.learner.source,
        width=made.learner.width,
        notes=made.learner.notes,
        found=made.found,
        features_s=made.features_s,
        parameters=exported.parameters,
        file_bytes=exported.file_bytes,
        export_s=exported.seconds,
        export_reused=exported.reused,
        cell=Cell(opened, 1, Point(), len(bundle.manifest.golden)),
    )
