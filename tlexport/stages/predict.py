"""Raw files in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import DataError
from tlexport.files import is_file, text_of
from tlexport.inquiry.steps import raw_answers
from tlexport.options import PredictOptions, RuntimeOptions
from tlexport.reports import Prediction, PredictReport
from tlexport.runtimes import Runtime, connect, yardstick_of
from tlexport.serving import pipeline
from tlexport.spec import rows


def predict(
    source: Path | str,
    files: Sequence[Path | str],
    options: PredictOptions | None = None,
    runtime: RuntimeOptions | None = None,
) -> PredictReport:
    """Ask a bundle's model, or a running server, about raw files.

    `source` is a bundle's folder, or a runtime that knows its model itself, such as
    triton@localhost:8001: a served pipeline is sent the files as they are. Files that cannot be
    read have an `error` in place of labels.

    Raises:
        DataError: a file does not exist.
        BundleError: `source` is no bundle.
        ServerError: the server is not there or has no such model.
    """
    options = options or PredictOptions()
    paths = [Path(file) for file in files]
    missing = [str(path) for path in paths if not is_file(path)]
    if missing or not paths:
        raise DataError(
            "files to ask about",
            got=f"no file {', '.join(missing)}" if missing else "none named",
            fix="name files that exist",
        )
    remote = "@" in str(source) and not Path(source).exists()
    bundle = None if remote else Bundle(source)
    runtime = runtime or RuntimeOptions()
    name = str(source) if bundle is None else options.runtime or _default(bundle, runtime.artifact)
    answering = connect(name, bundle, runtime)
    try:
        raw = answering.spec.task == pipeline.TASK
        task = None if raw else plugins.load("tasks", answering.spec.task)
        needed = bundle.files() if bundle is not None else {}
        batch = min(options.batch, (raw and answering.facts()["max_batch"]) or options.batch)
        predictions: list[Prediction] = []
        for at in range(0, len(paths), batch):
            some = paths[at : at + batch]
            if task is None:
                predictions += _send(answering, some, options.top)
            else:
                predictions += _ask(answering, task, (some, needed), options.top)
    finally:
        answering.close()
    return PredictReport(runtime=name, predictions=tuple(predictions))


def _send(answering: Runtime, paths: Sequence[Path], top: int) -> list[Prediction]:
    """What a served pipeline says of files as they are."""
    contents, found = {}, {}
    for row, path in enumerate(paths):
        try:
            contents[row] = path.read_bytes()
        except OSError as error:
            found[row] = Prediction(
                source=text_of(path), labels=(), probabilities=(), error=str(error.strerror)
            )
    for row, told in zip(contents, raw_answers(answering, list(contents.values())), strict=True):
        found[row] = Prediction(
            source=text_of(paths[row]),
            labels=told.labels[:top],
            probabilities=told.probabilities[:top],
            error=told.error,
        )
    return [found[row] for row in range(len(paths))]


Asked = tuple[Sequence[Path], Mapping[str, bytes]]
"""Raw inputs, and the files that reading them needs."""


def _ask(answering: Runtime, task: ModuleType, asked: Asked, top: int) -> list[Prediction]:
    spec = answering.spec
    paths, files = asked
    loaded = task.load(paths, spec.preprocess, files)
    found = {
        row: Prediction(source=text_of(paths[row]), labels=(), probabilities=(), error=why)
        for row, why in loaded.broken.items()
    }
    good = [row for row in range(len(paths)) if row not in found]
    if good:
        decided = task.decide(spec, answering(rows(loaded.inputs, good)))
        for place, row in enumerate(good):
            found[row] = Prediction(
                source=text_of(paths[row]),
                labels=tuple(spec.labels[number] for number in decided.order[place, :top]),
                probabilities=tuple(float(p) for p in decided.probabilities[place, :top]),
            )
    return [found[row] for row in range(len(paths))]


def _default(bundle: Bundle, artifact: str) -> str:
    return "ort@cpu" if artifact in bundle.artifacts() else yardstick_of(bundle)
