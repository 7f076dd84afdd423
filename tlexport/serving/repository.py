"""The Triton model repository: whole versions or none.

<repository>/<name>/config.pbtxt, labels.txt, warmup/...
<repository>/<name>/<version>/model.onnx       or model.onnx/model.onnx and its data
<repository>/<name>/<version>/tlexport.json    where the version comes from: Origin
<repository>/<name>/<version>/golden.safetensors   a few inputs (input:NAME), answers (output:NAME)
<repository>/<name>/<version>/own.pbtxt, labels.txt   as it is served: Triton reads the model's own
<repository>/<name>/<version>/warmup/...   its warm-ups, where no golden sample has them

A server that polls sees a version with all its files or not at all. A new model is made beside the
repository and renamed into it. In a model that is there, everything a new configuration names is
written first, then the configuration, which fits the older versions as well, then the version.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.bundle import encode, write_tensors
from tlexport.checks import check_name
from tlexport.errors import OptionError, RepositoryError
from tlexport.files import cannot_write, sync_file, sync_folder, write_atomic
from tlexport.serving import config, staging
from tlexport.serving.config import CONFIG, LABELS, WARMUP, Settings, Step
from tlexport.serving.standing import admit_next, admitted, standing_of
from tlexport.spec import ModelSpec

ORIGIN = "tlexport.json"
GOLDEN = "golden.safetensors"
OWN = "own.pbtxt"
"""The configuration as of a version, to go back to: there is but one for all of a model."""
MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "openvino": "model.xml"}
"""File that a backend opens where a configuration names none."""

NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
"""A version's folder: the server passes "01" over, and ends for a number past 64 bits."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from: digests of what it was made of and of its proof."""

    bundle_sha256: str
    artifact: str
    artifact_sha256: str
    weights_sha256: str
    golden_sha256: str
    parity_sha256: str
    parity: str
    versions: dict[str, str]


class NewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """All that makes a version.

    `files` are (where it is or its content, its path below the version folder); golden samples
    are kept where there are answers to them; `steps` make it an ensemble.
    """

    spec: ModelSpec
    settings: Settings
    files: tuple[tuple[Path | bytes, str], ...]
    origin: Origin
    golden_inputs: dict[str, np.ndarray]
    golden_outputs: dict[str, np.ndarray]
    steps: tuple[Step, ...] = ()

    def configuration(self, number: int, digests: Mapping[str, str]) -> pb.ModelConfig:
        """The configuration as of this version."""
        if self.steps:
            return config.ensemble(self.spec, self.settings, self.steps, number, digests)
        sample = {name: array[:1] for name, array in self.golden_inputs.items()}
        return config.build(self.spec, self.settings, sample, digests)


def install(
    repository: Path, new: NewVersion | Sequence[NewVersion], allow_signature_change: bool = False
) -> int:
    """Add the next version of a model; its number. Its lock is held by whoever calls this.

    Of several models all get the same number, and appear in order: all of them, or none.

    Raises:
        OptionError: the name is not one that Triton can bear.
        RepositoryError: the signature is not that of the model in place, or it cannot be written.
    """
    together = [new] if isinstance(new, NewVersion) else list(new)
    hold_names(together)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        for each in together if not allow_signature_change else ():
            hold_signature(repository / each.settings.name, each)
        return _install(repository, together)
    except OSError as error:
        raise RepositoryError(
            f"to write the repository {str(repository)!r}",
            got=error.strerror or str(error),
            fix=cannot_write(repository, error).fix,
        ) from error


def hold_names(together: Sequence[NewVersion]) -> None:
    """Refuse a model's name or a label that a server cannot bear.

    Raises:
        OptionError: the name is not one that Triton can bear.
        RepositoryError: a label is of more than one line.
    """
    for each in together:
        check_name(each.settings.name)
        for label in each.spec.labels:
            if "\n" in label:
                raise RepositoryError(
                    "labels of one line each", got=repr(label), fix="rename the label's folder"
                )


def versions(model: Path) -> list[int]:
    """Version numbers of a model folder, ascending; what else lies there is left alone."""
    names = [path.name for path in model.iterdir() if path.is_dir()] if model.is_dir() else []
    return sorted(int(name) for name in names if NUMBER.fullmatch(name))


def models(repository: Path) -> dict[str, list[int]]:
    """Model -> its versions, as the server would find them."""
    return {path.name: versions(path) for path in sorted(repository.iterdir()) if path.is_dir()}


def folders(repository: Path) -> list[str]:
    """The names of a repository's models, in order: every folder in it is one to the server.

    Raises:
        RepositoryError: it is not there, is empty, or is something else than a repository.
    """
    layout = "<repository>/<model>/config.pbtxt and <repository>/<model>/<version>/model.onnx"
    expected = f"a model repository {str(repository)!r}: {layout}"
    if repository.is_file():
        raise RepositoryError(
            expected,
            got=f"a file{' of ONNX' if repository.suffix == '.onnx' else ''}",
            fix="put it at <repository>/<model>/1/model.onnx, or run `tlexport package`, and name "
            "the repository's folder",
        )
    if not repository.is_dir():
        raise RepositoryError(expected, got="no such folder", fix="run `tlexport package` first")
    if (repository / "bundle.json").is_file():
        raise RepositoryError(
            expected, got="a bundle", fix=f"run `tlexport package {repository}` first"
        )
    if (repository / CONFIG).is_file():
        raise RepositoryError(
            expected, got="the folder of one model", fix=f"serve {str(repository.parent)!r}"
        )
    found = sorted(path.name for path in repository.iterdir() if path.is_dir())
    if not found:
        loose = [path.name for path in repository.glob("*.onnx")]
        raise RepositoryError(
            expected,
            got=f"{', '.join(loose)} in it, but no model folder" if loose else "an empty folder",
            fix="put it at <repository>/<model>/1/model.onnx"
            if loose
            else "run `tlexport package`",
        )
    return found


def check(repository: Path) -> dict[str, list[int]]:
    """Hold a folder against what the server expects of a repository; its models.

    Raises:
        RepositoryError: it is no repository, or a model's name is not one that Triton can bear.
    """
    folders(repository)
    found = models(repository)
    for name, numbers in found.items():
        try:
            check_name(name)
        except OptionError as error:
            raise RepositoryError(
                error.expected,
                got=f"{error.got} in {str(repository)!r}",
                fix="rename or move that folder: the server takes every folder there for a model",
            ) from error
        _check_model(repository / name, numbers)
    return found


def fully_described(repository: Path) -> bool:
    """Whether every model's configuration leaves the server nothing to complete."""
    for path in repository.iterdir():
        if path.is_dir():
            if not (path / CONFIG).is_file():
                return False
            found = config.parse(path / CONFIG)
            whole = found.input and found.output and (found.backend or found.platform)
            if not whole or not (found.instance_group or found.platform == "ensemble"):
                return False
    return True


def _check_model(folder: Path, numbers: list[int]) -> None:
    described = (folder / CONFIG).is_file()
    if described:
        config.parse(folder / CONFIG)
    if not numbers:
        raise RepositoryError(
            f"a version folder such as {folder.name}/1 in {str(folder)!r}",
            got=", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder",
            fix="put the model into a folder whose name is a number, or remove this one",
        )
    newest = folder / str(numbers[-1])
    if not described and not any((newest / name).exists() for name in MODEL_FILES.values()):
        raise RepositoryError(
            f"{CONFIG} in {str(folder)!r}",
            got=f"none, and no {', '.join(MODEL_FILES.values())} in {folder.name}/{numbers[-1]}",
            fix="run `tlexport package`, or write the configuration",
        )


def _install(repository: Path, together: Sequence[NewVersion]) -> int:
    """Make every version beside its place, then put one after the other there."""
    beside = staging.stage_place(repository)
    places = [repository / new.settings.name for new in together]
    with contextlib.ExitStack() as stages, contextlib.ExitStack() as undo:
        for place in places:
            if beside is None and not place.is_dir():
                place.mkdir()
                undo.callback(shutil.rmtree, place, ignore_errors=True)
        number = max(map(next_number, places))
        made = []
        for place, new in zip(places, together, strict=True):
            there = place.is_dir()
            stage = stages.enter_context(staging.aside(place if there else beside or place))
            fill_version(stage if there else stage / str(number), new, number)
            made.append(stage)
        for place, stage, new in zip(places, made, together, strict=True):
            undo.callback(_put(place, stage, new, number))
        undo.pop_all()
    return number


def _put(place: Path, stage: Path, new: NewVersion, number: int) -> Callable[[], None]:
    """Make a filled folder the version of its model; what takes it back."""
    if not place.is_dir():
        _describe(stage, new, number)
        stage.rename(place)
        sync_folder(place.parent)
        return lambda: shutil.rmtree(place)
    before = {path: path.read_bytes() for path in place.iterdir() if path.name in (CONFIG, LABELS)}
    version = place / str(number)

    def back() -> None:
        if version.is_dir():
            version.rename(stage)
        for path, content in before.items():
            if path.read_bytes() != content:
                write_atomic(path, content)

    try:
        _describe(place, new, number)
        stage.rename(version)
        sync_folder(place)
        if number not in admitted(config.parse(place / CONFIG), versions(place)):
            _describe(place, new, number)
    except BaseException:
        back()
        raise
    return back


def next_number(model: Path) -> int:
    """The number after the last ever given; a file of such a name is in the way as well."""
    taken = [path.name for path in model.iterdir()] if model.is_dir() else []
    numbers = [int(name) for name in taken if NUMBER.fullmatch(name)]
    place = model / CONFIG
    last = standing_of(config.parse(place), versions(model)).last if place.is_file() else 0
    return max((last, *numbers)) + 1


def fill_version(folder: Path, new: NewVersion, number: int) -> None:
    """Write all that belongs to a version into a new folder."""
    for source, name in new.files:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            write_atomic(place, source)
            continue
        shutil.copyfile(source, place)
        sync_file(place)
    sides = {"input": new.golden_inputs, "output": new.golden_outputs}
    golden = {f"{side}:{name}": a for side, each in sides.items() for name, a in each.items()}
    if new.golden_outputs:
        write_tensors(folder / GOLDEN, golden)
    else:  # inputs may be texts, which a file of tensors does not hold
        _write_warmups(folder, new)
    own = new.configuration(number, {str(number): new.origin.artifact_sha256})
    for block in own.output:
        if block.label_filename:
            block.label_filename = f"{number}/{LABELS}"
    if new.spec.labels:
        write_atomic(folder / LABELS, _lines(new.spec.labels))
    write_atomic(folder / OWN, config.text(own).encode())
    write_atomic(folder / ORIGIN, encode(new.origin))


def _describe(model: Path, new: NewVersion, number: int) -> None:
    """Write what the configuration names, then the configuration, then drop what none names."""
    place = model / CONFIG
    before = config.parse(place) if place.is_file() else None
    kept = {str(version) for version in versions(model)}
    known = config.digests_of(before) if before is not None else {}
    digests = {version: sha for version, sha in known.items() if version in kept}
    digests[str(number)] = new.origin.artifact_sha256
    built = new.configuration(number, digests)
    if before is not None:
        admit_next(built, before, versions(model), number)
    if new.spec.labels:
        write_atomic(model / LABELS, _lines(new.spec.labels))
    _write_warmups(model, new)
    write_atomic(place, config.text(built).encode())
    drop_unnamed(model, [built] if before is None else [built, before])


def _write_warmups(folder: Path, new: NewVersion) -> None:
    for array in new.golden_inputs.values():
        raw = config.raw_bytes(array[:1])
        write_atomic(folder / WARMUP / config.warmup_name(array[:1]), raw)


def drop_unnamed(model: Path, named_by: Sequence[pb.ModelConfig]) -> None:
    """Remove warm-up files that no configuration names, and what a killed packager left."""
    named = {file for each in named_by for file in warmup_files(each)}
    unfinished = [path for name in (CONFIG, LABELS) for path in model.glob(f".{name}.*")]
    for path in (*unfinished, *(model / WARMUP).glob("*")):
        if path.name not in named:
            path.unlink()


def _lines(labels: Sequence[str]) -> bytes:
    return "".join(f"{label}\n" for label in labels).encode()


def warmup_files(found: pb.ModelConfig) -> set[str]:
    """The files below warmup/ that a configuration names."""
    blocks = [block for warmup in found.model_warmup for block in warmup.inputs.values()]
    return {block.input_data_file for block in blocks}


def hold_signature(model: Path, new: NewVersion) -> None:
    """Refuse a version with other inputs, outputs or labels than the model in place.

    Raises:
        RepositoryError: naming what differs.
    """
    if not (model / CONFIG).is_file():
        return
    before = _signature(config.parse(model / CONFIG), model)
    after = _signature(new.configuration(1, {}), None)
    after["labels"] = list(new.spec.labels)
    for part, value in after.items():
        if before[part] != value:
            raise RepositoryError(
                f"the {part} of {model.name!r} as they are served now: {before[part]}",
                got=f"{value}",
                fix="clients rely on them: pass another --name, or --allow-signature-change",
            )


def _signature(found: pb.ModelConfig, model: Path | None) -> dict[str, list[str]]:
    def described(block: pb.ModelInput | pb.ModelOutput) -> str:
        kind = pb.DataType.Name(block.data_type).removeprefix("TYPE_")
        return f"{block.name} {kind} [{', '.join(map(str, block.dims))}]"

    files = [block.label_filename for block in found.output if block.label_filename]
    labels = model / next(iter(files), LABELS) if model is not None else None
    return {
        "inputs": [described(block) for block in found.input],
        "outputs": [described(block) for block in found.output],
        "labels": labels.read_text().splitlines() if labels and labels.is_file() else [],
    }
