"""Raw files in, labels out: the models around a model.

NAME_preprocess    a Python model: raw items -> the inputs of NAME, by a copy of the file of
                   `preprocess/` that training used
NAME_postprocess   a Python model: the scores of NAME -> labels and probabilities
NAME_pipeline      the ensemble that clients call: preprocess, NAME, postprocess

All four have version N together, and the ensemble names version N of each step: what version N
reads, its weights and its labels belong together, or there is no answer. Each step keeps one
version more than asked for, so that the ensemble has its own until it is told of the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import numpy as np

from tlexport.errors import RepositoryError
from tlexport.serving import config
from tlexport.serving.config import CONFIG, Settings, Step
from tlexport.serving.repository import NewVersion
from tlexport.spec import ModelSpec, TensorSpec

RAW, LABEL, PROBABILITY, ERROR = "raw", "label", "probability", "error"
SUFFIXES = ("_preprocess", "_postprocess", "_pipeline")
TASK = "pipeline"
"""The task of a spec whose input is raw items."""
GOLDEN = "pipeline.json"
GOLDEN_FILES = "golden"
"""Folder of golden files in a version of a pipeline."""
STEPS = Path(__file__).parent / "steps"
LEAST_VERSIONS = 2
REFUSED = f"in {RAW!r}; got: "
"""What a refusal of the preprocessing step has in it."""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Golden samples in the version's folder and the original's answers, best first.

    `margins` are the first probability less the second, and `scale` is the largest |score| that
    the original gives.
    """

    raw: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    margins: tuple[float, ...]
    scale: float


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """What a pipeline is made of, beside its model.

    `reader` is the file of `preprocess/`, `files` what it needs besides the spec's numbers, `raw`
    golden samples as they came, `top` the labels told of each item.
    """

    reader: Path
    files: Mapping[str, bytes]
    raw: tuple[Path, ...]
    golden: Golden
    top: int


def preprocess_of(model: str) -> str:
    """The name of a model's preprocessing step."""
    return f"{model}{SUFFIXES[0]}"


def postprocess_of(model: str) -> str:
    """The name of a model's postprocessing step."""
    return f"{model}{SUFFIXES[1]}"


def pipeline_of(model: str) -> str:
    """The name of the ensemble that clients call."""
    return f"{model}{SUFFIXES[2]}"


def whole(model: str) -> tuple[str, ...]:
    """The names of a model and all that stands around it, in the order in which they change."""
    return (preprocess_of(model), postprocess_of(model), model, pipeline_of(model))


def moved_with(repository: Path, model: str) -> tuple[str, ...]:
    """The models that change together with a model, in order: it alone, or its whole pipeline."""
    described = (repository / pipeline_of(model) / CONFIG).is_file()
    return whole(model) if described else (model,)


def main_of(name: str, names: Collection[str]) -> str:
    """The model that a name of these belongs to: itself, or that which it stands around."""
    for suffix in SUFFIXES:
        model = name.removesuffix(suffix)
        if model != name and set(whole(model)) <= set(names):
            return model
    return name


def few(pipeline: Pipeline, count: int) -> Pipeline:
    """The same with its first golden files alone."""
    golden = pipeline.golden
    return msgspec.structs.replace(
        pipeline,
        raw=pipeline.raw[:count],
        golden=msgspec.structs.replace(
            golden,
            raw=golden.raw[:count],
            labels=golden.labels[:count],
            probabilities=golden.probabilities[:count],
            margins=golden.margins[:count],
        ),
    )


def around_step(name: str) -> str:
    """The pipeline that a model of this name is but a step of; "" for any other name."""
    for suffix in SUFFIXES[:2]:
        if name.endswith(suffix):
            return pipeline_of(name.removesuffix(suffix))
    return ""


def golden_of(version: Path) -> Golden | None:
    """The golden files of a version's folder and their answers; None where it has none.

    Raises:
        RepositoryError: what should tell of them cannot be read.
    """
    path = version / GOLDEN
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Golden)
    except (OSError, msgspec.DecodeError) as error:
        raise RepositoryError(
            f"golden files and their answers in {str(path)!r}",
            got=str(error),
            fix="package the model again",
        ) from error


def there(repository: Path, model: str) -> int | None:
    """How many labels the model's pipeline in a repository tells; None where there is none.

    Raises:
        RepositoryError: its configuration cannot be read.
    """
    path = repository / pipeline_of(model) / CONFIG
    if not path.is_file():
        return None
    found = config.parse(path)
    told = [block.dims[-1] for block in found.output if block.name == LABEL and block.dims]
    return int(told[0]) if told else None


def around(model: NewVersion, pipeline: Pipeline) -> tuple[NewVersion, ...]:
    """The versions to install together: both steps, the model, and the ensemble last."""
    kept = max(LEAST_VERSIONS, model.settings.keep_versions)
    model = msgspec.structs.replace(
        model, settings=msgspec.structs.replace(model.settings, keep_versions=kept)
    )
    return (
        _preprocess(model, pipeline),
        _postprocess(model, pipeline),
        model,
        _ensemble(model, pipeline),
    )


def _preprocess(model: NewVersion, pipeline: Pipeline) -> NewVersion:
    told = {
        "module": pipeline.reader.name,
        "numbers": model.spec.preprocess,
        "files": sorted(pipeline.files),
    }
    first = pipeline.raw[0].read_bytes()
    raw = np.array([[first]], dtype=np.object_)
    settings = _settings(model, preprocess_of(model.settings.name))
    spec = ModelSpec(
        name=settings.name,
        task="preprocess",
        inputs=(_column(RAW),),
        outputs=(*(_unbound(tensor) for tensor in model.spec.inputs), _column(ERROR)),
    )
    return NewVersion(
        spec=spec,
        settings=settings,
        files=(
            (STEPS / "preprocess" / "model.py", "model.py"),
            (pipeline.reader, pipeline.reader.name),
            (_json(told), "step.json"),
            *((content, f"files/{name}") for name, content in pipeline.files.items()),
        ),
        origin=model.origin,
        golden_inputs={RAW: raw},
        golden_outputs={},
    )


def _postprocess(model: NewVersion, pipeline: Pipeline) -> NewVersion:
    scores = model.spec.outputs[0]
    told = {"scores": scores.name, "labels": model.spec.labels, "top": pipeline.top}
    none = np.array([[b""]], dtype=np.object_)
    settings = _settings(model, postprocess_of(model.settings.name))
    spec = ModelSpec(
        name=settings.name,
        task="postprocess",
        inputs=(scores, _column(ERROR)),
        outputs=_answers(pipeline.top),
    )
    return NewVersion(
        spec=spec,
        settings=settings,
        files=((STEPS / "postprocess" / "model.py", "model.py"), (_json(told), "step.json")),
        origin=model.origin,
        golden_inputs={scores.name: model.golden_outputs[scores.name][:1], ERROR: none},
        golden_outputs={},
    )


def _ensemble(model: NewVersion, pipeline: Pipeline) -> NewVersion:
    name, unread = model.settings.name, "unread"
    inputs = {tensor.name: f"model:{tensor.name}" for tensor in model.spec.inputs}
    scores = model.spec.outputs[0].name
    steps = (
        Step(model=preprocess_of(name), inputs={RAW: RAW}, outputs=inputs | {ERROR: unread}),
        Step(model=name, inputs=inputs, outputs={scores: f"model:{scores}"}),
        Step(
            model=postprocess_of(name),
            inputs={scores: f"model:{scores}", ERROR: unread},
            outputs={each.name: each.name for each in _answers(pipeline.top)},
        ),
    )
    return NewVersion(
        spec=ModelSpec(
            name=pipeline_of(name),
            task=TASK,
            inputs=(_column(RAW),),
            outputs=_answers(pipeline.top),
        ),
        settings=_settings(model, pipeline_of(name), keep_versions=1),
        files=(
            (msgspec.json.format(msgspec.json.encode(pipeline.golden)), GOLDEN),
            *zip(pipeline.raw, pipeline.golden.raw, strict=True),
        ),
        origin=model.origin,
        golden_inputs={},
        golden_outputs={},
        steps=steps,
    )


def _settings(model: NewVersion, name: str, keep_versions: int = 0) -> Settings:
    """A step's settings: one instance with the threads of all the model's."""
    own = model.settings
    return msgspec.structs.replace(
        own,
        name=name,
        backend="python",
        instances=1,
        threads=own.instances * own.threads,
        keep_versions=keep_versions or own.keep_versions,
    )


def _answers(top: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(name=LABEL, dtype="object", shape=("batch", top)),
        TensorSpec(name=PROBABILITY, dtype="float32", shape=("batch", top)),
        _column(ERROR),
    )


def _column(name: str) -> TensorSpec:
    """One text or file per item: a client sends and gets [items, 1]."""
    return TensorSpec(name=name, dtype="object", shape=("batch", 1))


def _unbound(tensor: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(tensor, legal=None)


def _json(told: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(told)) + b"\n"
