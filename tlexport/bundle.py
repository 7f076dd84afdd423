"""The folder that travels from stage to stage.

bundle.json                    what the model is: Manifest
weights.safetensors            the network, head included (`Manifest.weights`: or program.pt2,
                               model.onnx for what was imported so)
preprocess/...                 what preprocessing needs besides numbers, such as tokenizer.json
golden/inputs.safetensors      preprocessed held-out inputs, one row a sample
golden/outputs.safetensors     what the original answers to them
golden/raw/...                 the same inputs as they came (image files, texts, waveforms)
artifacts/<target>-<precision>/artifact.json and its files
reports/<kind>.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from tlexport.environment import versions
from tlexport.errors import BundleError
from tlexport.files import atomic_folder, sha256_of, sha256_of_json, text_of, write_atomic
from tlexport.spec import ModelSpec, Tensors

FORMAT = 1
FILES = "preprocess"
LONGEST_NAME = 60
"""Characters kept of a golden file's name: with a number before it, it still is a legal name."""

Report = TypeVar("Report", bound=msgspec.Struct)


class GoldenSample(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out input: its raw file below golden/raw and its true label."""

    file: str
    label: str = ""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """All golden samples: row i of each tensor belongs to `samples[i]`."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    samples: tuple[GoldenSample, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is. `network` is what its maker needs to build it again: names and numbers.

    `weights` is the file below the bundle that holds them, `beside` what belongs to it (data of an
    ONNX file above 2 GB) and `files` those of preprocess/, each with its sha256. `original` is
    False where there is no network in PyTorch to compare with, and `answered_by` says whose answers
    the golden outputs are: the original's, those that came with the samples, or the file's own.
    """

    spec: ModelSpec
    network: dict[str, Any]
    weights_sha256: str
    golden_sha256: str
    golden: tuple[GoldenSample, ...]
    versions: dict[str, str]
    weights: str = "weights.safetensors"
    beside: dict[str, str] = {}
    files: dict[str, str] = {}
    original: bool = True
    answered_by: Literal["original", "samples", "file"] = "original"
    format: int = FORMAT


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What the model became: `file` is the one to open, `files` all that belong to it.

    `source_sha256` is the digest of the weights it was made from, `spec_sha256` of the bundle's
    spec, labels included: another one is a stale artifact. The bundle itself writes the latter.
    With `io` "fp16" its tensors are float16 where the bundle's spec has float32.
    """

    target: str
    precision: str
    file: str
    files: tuple[str, ...]
    sha256: str
    source_sha256: str
    triton_backend: str
    options: dict[str, Any]
    versions: dict[str, str]
    spec_sha256: str = ""
    io: Literal["fp32", "fp16"] = "fp32"

    @property
    def name(self) -> str:
        """TARGET-PRECISION, the artifact's folder."""
        return f"{self.target}-{self.precision}"


def digest_of(folder: Path, files: tuple[str, ...]) -> str:
    """Digest of an artifact: of its one file, or of the names and digests of all its files."""
    digests = {name: sha256_of(folder / name) for name in sorted(files)}
    return next(iter(digests.values())) if len(digests) == 1 else sha256_of_json(digests)


class Bundle:
    """A bundle on disk, opened by its folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.manifest = _read(self.root / "bundle.json", Manifest, "a bundle folder")
        if self.manifest.format != FORMAT:
            raise BundleError(
                f"a bundle of format {FORMAT}",
                got=f"format {self.manifest.format} in {str(self.root)!r}",
                fix="make it again with this version, or use the version that made it",
            )

    @property
    def spec(self) -> ModelSpec:
        """What the model takes and answers."""
        return self.manifest.spec

    @property
    def weights(self) -> Path:
        """The fine-tuned network, checked against the manifest's digest.

        Raises:
            BundleError: the file is missing or is not the one the manifest was written for.
        """
        path = self.root / self.manifest.weights
        self._hold(path, self.manifest.weights_sha256)
        for name, digest in self.manifest.beside.items():
            self._hold(self.root / name, digest)
        return path

    def files(self) -> dict[str, bytes]:
        """What preprocessing needs besides numbers, by name.

        Raises:
            BundleError: one is missing or is not the one the manifest was written for.
        """
        for name, digest in self.manifest.files.items():
            self._hold(self.root / FILES / name, digest)
        return {name: (self.root / FILES / name).read_bytes() for name in self.manifest.files}

    def golden(self) -> Golden:
        """The golden samples.

        Raises:
            BundleError: a file is missing or changed since the bundle was made.
        """
        paths = [self.root / "golden" / f"{side}.safetensors" for side in ("inputs", "outputs")]
        found = golden_digest(self.root / "golden") if all(p.is_file() for p in paths) else "none"
        if found != self.manifest.golden_sha256:
            raise self._changed(self.root / "golden", self.manifest.golden_sha256, found)
        inputs, outputs = (read_tensors(path) for path in paths)
        rows = {len(array) for array in (*inputs.values(), *outputs.values())}
        if rows != {len(self.manifest.golden)} or 0 in rows:
            raise BundleError(
                f"golden tensors with a row for each of {len(self.manifest.golden)} samples",
                got=f"{', '.join(map(str, sorted(rows)))} rows in {str(self.root / 'golden')!r}",
                fix="the bundle was changed after it was made: restore it or make it again",
            )
        return Golden(inputs=inputs, outputs=outputs, samples=self.manifest.golden)

    def raw(self, sample: GoldenSample) -> Path:
        """The golden sample as it came."""
        return self.root / "golden" / "raw" / sample.file

    def artifacts(self) -> list[str]:
        """Names of the artifacts there are."""
        return sorted(path.parent.name for path in self.root.glob("artifacts/*/artifact.json"))

    def spec_of(self, artifact: Artifact) -> ModelSpec:
        """The spec with the dtypes that an artifact has."""
        return self.spec.in_halves() if artifact.io == "fp16" else self.spec

    def artifact(self, name: str) -> Artifact:
        """The artifact called TARGET-PRECISION, checked: its files are whole and not stale.

        Raises:
            BundleError: there is none, a file changed, or the weights or the spec did.
        """
        known = self.artifacts()
        if name not in known:
            raise BundleError(
                f"an artifact {name!r} in {str(self.root)!r}",
                got=", ".join(known) or "no artifacts",
                fix=f"run `tlexport export {self.root}` first, with --precision for one below fp32",
            )
        folder = self.root / "artifacts" / name
        artifact = _read(folder / "artifact.json", Artifact, "an artifact")
        if artifact.source_sha256 != self.manifest.weights_sha256:
            raise BundleError(
                f"an artifact made from weights {self.manifest.weights_sha256[:12]}",
                got=f"{name} made from {artifact.source_sha256[:12]}",
                fix=f"run `tlexport export {self.root}` again",
            )
        if artifact.spec_sha256 not in ("", sha256_of_json(self.spec)):
            raise BundleError(
                f"{name} made for the inputs, outputs and labels in bundle.json",
                got="they changed since",
                fix=f"run `tlexport export {self.root}` again",
            )
        whole = all((folder / file).is_file() for file in artifact.files)
        found = digest_of(folder, artifact.files) if whole else "missing files"
        if found != artifact.sha256:
            raise self._changed(folder, artifact.sha256, found)
        return artifact

    def artifact_file(self, artifact: Artifact) -> Path:
        """The file of an artifact that a runtime opens."""
        return self.root / "artifacts" / artifact.name / artifact.file

    def add_artifact(self, artifact: Artifact, folder: Path) -> None:
        """Take over the files in `folder` as `artifact`, in place of an older one of its name."""
        place = self.root / "artifacts" / artifact.name
        artifact = msgspec.structs.replace(artifact, spec_sha256=sha256_of_json(self.spec))
        with atomic_folder(place, replace=True) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
            write_atomic(new / "artifact.json", encode(artifact))

    def write_report(self, kind: str, report: msgspec.Struct) -> Path:
        """Keep a stage's report; an older one of that kind is replaced."""
        path = self.root / "reports" / f"{kind}.json"
        write_atomic(path, encode(report))
        return path

    def report(self, kind: str, type_: type[Report]) -> Report | None:
        """Read the report of that kind, or None where the stage has not run."""
        path = self.root / "reports" / f"{kind}.json"
        return _read(path, type_, f"a {kind} report") if path.is_file() else None

    def _hold(self, path: Path, expected: str) -> None:
        found = sha256_of(path) if path.is_file() else "no file"
        if found != expected:
            raise self._changed(path, expected, found)

    def _changed(self, path: Path, expected: str, found: str) -> BundleError:
        return BundleError(
            f"{path.name} with sha256 {expected[:12]}...",
            got=f"{found[:12]} in {str(path)!r}",
            fix="the bundle was changed after it was made: restore it or make it again",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
    """A golden input as it came: the name of its file, its bytes, its label if it has one."""

    name: str
    content: bytes
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """All of a bundle but its weights, which its maker has put into the folder."""

    spec: ModelSpec
    network: dict[str, Any]
    inputs: Tensors
    outputs: Tensors
    raw: Sequence[Raw]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    weights: str = "weights.safetensors"
    beside: Sequence[str] = ()
    original: bool = True
    answered_by: Literal["original", "samples", "file"] = "original"


def fill(folder: Path, draft: Draft) -> Bundle:
    """Make a bundle of `folder`, where the weights are already."""
    write_tensors(folder / "golden" / "inputs.safetensors", draft.inputs)
    write_tensors(folder / "golden" / "outputs.safetensors", draft.outputs)
    samples = []
    for number, raw in enumerate(draft.raw):
        name = f"{number:03d}-{text_of(raw.name[-LONGEST_NAME:])}"
        write_atomic(folder / "golden" / "raw" / name, raw.content)
        samples.append(GoldenSample(file=name, label=raw.label))
    manifest = Manifest(
        spec=draft.spec,
        network=draft.network,
        weights=draft.weights,
        weights_sha256=sha256_of(folder / draft.weights),
        beside={name: sha256_of(folder / name) for name in draft.beside},
        golden_sha256=golden_digest(folder / "golden"),
        golden=tuple(samples),
        files=write_files(folder, draft.files),
        versions=versions(),
        original=draft.original,
        answered_by=draft.answered_by,
    )
    write_atomic(folder / "bundle.json", encode(manifest))
    return Bundle(folder)


def golden_digest(folder: Path) -> str:
    """Digest of the golden tensors, inputs and outputs."""
    return digest_of(folder, ("inputs.safetensors", "outputs.safetensors"))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file.

    Raises:
        BundleError: the file is cut short or is not safetensors.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"a safetensors file {str(path)!r}", got=str(error), fix="make the bundle again"
        ) from error


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write arrays as a safetensors file, whole or not at all."""
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_atomic(path, safetensors.numpy.save(whole))


def write_files(root: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Put what preprocessing needs into a bundle's folder; name -> sha256."""
    for name, content in files.items():
        write_atomic(root / FILES / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def encode(record: msgspec.Struct) -> bytes:
    """Indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(record)) + b"\n"


def _read(path: Path, type_: type[Report], what: str) -> Report:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{what} with {path.name}",
            got=f"no {path.name} in {str(path.parent)!r}",
            fix="name the folder that `tlexport train -o` or `tlexport import -o` wrote",
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(
            f"{what} in {str(path)!r}", got=str(error), fix="make it again"
        ) from error
