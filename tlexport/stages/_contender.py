"""A network that takes part: its features, file and runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

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
from tlexport.options import Entry, RuntimeOptions, SelectOptions, TrainOptions
from tlexport.progress import Progress
from tlexport.stages import _usable
from tlexport.stages._beside import TARGET, Exporter, exporter
from tlexport.stages._extractor import before_the_head
from tlexport.tasks import Example, Examples, Learner
from tlexport.traffic.asker import MOST_QUESTIONS
from tlexport.traffic.cells import Cell, Point
from tlexport.traffic.clients import Order, client
from tlexport.training import crossing, features, finish

NAME = "candidate"
VERSION = 1
"""Raise it when the same network would become another file than before."""

WORTH_S = 2.0
"""Seconds of work ahead from which its file is tried for features: it is there already."""

NOT_TO_BE_RUN = (DataError, ExportError, SpecError, BundleError)
NOT_TO_BE_HAD = (OptionError, MissingDependency, *NOT_TO_BE_RUN)
"""What leaves a network out; anything else is wrong with all of them and ends the comparison."""


Left = list[tuple[Entry, TlexportError]]
"""Networks that cannot take part, and why."""


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


def contenders(entries: Sequence[Entry], field: Field) -> tuple[list[Contender], Left]:
    """All networks that can be had and run, and why the others cannot.

    Features of one are computed while the next one is exported.

    Raises:
        DataError: examples are broken, and may not be left out.
        OptionError, MissingDependency: the runtime is not to be had.
        BundleError: what is made on the way cannot be written.
    """
    ready: list[Contender] = []
    left: Left = []
    with exporter(len(entries), field.work) as begin:
        waiting: _Begun | None = None
        for entry in entries:
            begun = _begun(entry, field, begin, left)
            if begun is None:
                continue
            if waiting is not None:
                _go_on(waiting, field, ready, left)
            waiting = begun
        if waiting is not None:
            _go_on(waiting, field, ready, left)
    return ready, sorted(left, key=lambda each: entries.index(each[0]))


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A network whose file is on the way; `exported` waits for it."""

    entry: Entry
    model: finish.Model
    learner_s: float
    bundle: Bundle
    exported: Callable[[], _Exported]


@dataclasses.dataclass(frozen=True)
class _Exported:
    file: Path
    file_bytes: int
    seconds: float
    reused: bool


def _begun(entry: Entry, field: Field, begin: Exporter, left: Left) -> _Begun | None:
    """The network with its weights, and a bundle of it for as long as it is asked."""
    try:
        learner, learner_s = _learner(entry, field)
        golden, broken = _some(field, learner)
    except NOT_TO_BE_HAD as error:
        left.append((entry, error))
        return None
    if not golden:
        _usable.hold_readable(field.examples, broken)
    try:
        model = _assembled(field, learner)
        bundle = finish.write(Path(tempfile.mkdtemp(dir=field.work)), model, golden)
        return _Begun(entry, model, learner_s, bundle, _export(bundle, begin))
    except NOT_TO_BE_HAD as error:
        if _cannot_write(error):
            raise
        left.append((entry, error))
        return None


def _go_on(begun: _Begun, field: Field, ready: list[Contender], left: Left) -> None:
    """Features by its file where that is faster, and the runtime that was asked for."""
    try:
        exported = begun.exported()
        found, features_s = _looked(begun, exported, field)
    except NOT_TO_BE_HAD as error:
        if _cannot_write(error):
            raise
        left.append((begun.entry, error))
        return
    if not field.options.skip_broken:
        _usable.hold_readable(field.examples, found.broken)
    try:
        _hold_usable(field, found)
        ready.append(_opened(begun, exported, field, found, begun.learner_s + features_s))
    except NOT_TO_BE_RUN as error:
        left.append((begun.entry, error))


def _learner(entry: Entry, field: Field) -> tuple[Learner, float]:
    """The network with its weights, and the seconds it took."""
    options = field.options
    start = time.perf_counter()
    learner: Learner = field.task.learner(
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
    return learner, time.perf_counter() - start


def _looked(begun: _Begun, exported: _Exported, field: Field) -> tuple[features.Features, float]:
    """The network's features of the examples, and the seconds."""
    start = time.perf_counter()
    learner = begun.model.learner
    extraction = features.Extraction(
        task=field.task,
        learner=learner,
        cache=cache_folder() / "features",
        batch=field.options.batch,
        faster=before_the_head(exported.file, learner.width),
        worth_s=WORTH_S,
    )
    found = features.compute(field.examples, extraction, _named(field.progress, begun.entry))
    return found, time.perf_counter() - start


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


def _some(field: Field, learner: Learner) -> tuple[list[Example], dict[int, str]]:
    """The first of the examples, shuffled, that can be read; without one, why none can."""
    order = finish.golden_of(field.examples, len(field.examples), field.options.seed)
    found: list[Example] = []
    broken: dict[str, str] = {}
    while order and len(found) < MOST_QUESTIONS:
        part, order = order[:MOST_QUESTIONS], order[MOST_QUESTIONS:]
        sources = [example.source for example in part]
        lost = field.task.load(sources, learner.preprocess, learner.files).broken
        found += [example for row, example in enumerate(part) if row not in lost]
        broken |= {part[row].digest: why for row, why in lost.items()}
    reasons = [broken.get(example.digest, "") for example in field.examples]
    return found[:MOST_QUESTIONS], {row: why for row, why in enumerate(reasons) if why}


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


def _export(bundle: Bundle, begin: Exporter) -> Callable[[], _Exported]:
    """Begin to make its file, unless an earlier comparison left it in the cache; and wait for it.

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
            "network": bundle.manifest.network,
            "versions": versions(),
        }
    )
    kept = cache_folder() / "candidates" / key
    if _taken_over(bundle, kept):
        taken_s = time.perf_counter() - start
        return lambda: _told(bundle, taken_s, reused=True)
    wait = begin(bundle)

    def exported() -> _Exported:
        made, folder, seconds = wait()
        bundle.add_artifact(made, folder)
        shutil.rmtree(folder)
        _keep(bundle, made, kept)
        return _told(bundle, seconds, reused=False)

    return exported


def _told(bundle: Bundle, seconds: float, *, reused: bool) -> _Exported:
    artifact = bundle.artifact(f"{TARGET}-fp32")
    root = bundle.root / "artifacts" / artifact.name
    return _Exported(
        file=root / artifact.file,
        file_bytes=sum((root / file).stat().st_size for file in artifact.files),
        seconds=seconds,
        reused=reused,
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


def _opened(
    begun: _Begun,
    exported: _Exported,
    field: Field,
    found: features.Features,
    features_s: float,
) -> Contender:
    """The runtime that was asked for, open, and asked once."""
    order = Order(
        runtime=field.options.runtime,
        bundle=str(begun.bundle.root),
        options=RuntimeOptions(threads=field.options.threads),
        batches=(1,),
    )
    opened = client(begun.bundle, order, processes=1, concurrency=1)
    field.stack.callback(opened.close)
    opened.check(1)
    learner = begun.model.learner
    return Contender(
        entry=begun.entry,
        source=learner.source,
        width=learner.width,
        notes=learner.notes,
        found=found,
        features_s=features_s,
        parameters=sum(tensor.numel() for tensor in begun.model.network.parameters()),
        file_bytes=exported.file_bytes,
        export_s=exported.seconds,
        export_reused=exported.reused,
        cell=Cell(opened, 1, Point(), len(begun.bundle.manifest.golden)),
    )
