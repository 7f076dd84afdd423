"""A model's folder, read once for all rules."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving import repository
from tlexport.serving.config import CONFIG
from tlexport.serving.lint import _graph
from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._graph import Graph
from tlexport.serving.lint._text import Located
from tlexport.serving.lint._text import Path as Steps
from tlexport.serving.releases import Release
from tlexport.serving.standing import admitted

PLATFORMS = {
    "ensemble": "ensemble",
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""`platform`, an older way to name a backend."""

DEFAULT_MAX_BATCH = 4
"""What the server completes a max_batch_size to where nobody wrote one."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is held against: its neighbours, a release, a machine's cores."""

    models: Mapping[str, Model]
    triton: Release | None
    cores: int


class Model:
    """One folder of a repository: its configuration, its versions, their files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.config_path = folder / CONFIG
        self.described = self.config_path.is_file()
        self.fault, self.config, self.text = "", pb.ModelConfig(), Located("")
        if self.described:
            self._parse(self.config_path.read_bytes().decode("utf-8", "surrogateescape"))

    def _parse(self, text: str) -> None:
        try:
            self.config = text_format.Parse(text.encode("utf-8", "replace"), pb.ModelConfig())
            self.text = Located(text)
        except (text_format.ParseError, UnicodeError) as error:
            self.fault = str(error)

    def finding(
        self, rule: str, where: Steps | Path, expected: str, *, got: str, fix: str
    ) -> Finding:
        """A broken rule: `where` is a field of the configuration or another file of the model."""
        return Finding(
            rule=rule,
            model=self.name,
            path=where if isinstance(where, Path) else self.config_path,
            line=None if isinstance(where, Path) else self.text.line(where),
            field="" if isinstance(where, Path) else _written(where),
            expected=expected,
            got=got,
            fix=fix,
        )

    @functools.cached_property
    def backend(self) -> str:
        """The backend that serves it; "" where the server could not tell."""
        named = str(self.config.backend)
        if named:
            return named
        if self.config.platform:
            return PLATFORMS.get(self.config.platform, "")
        if not self.config.default_model_filename:
            for backend, file in (*repository.MODEL_FILES.items(), ("python", "model.py")):
                if any((self.folder / str(number) / file).exists() for number in self.numbers):
                    return backend
        return ""

    @functools.cached_property
    def numbers(self) -> list[int]:
        """Versions there are, ascending."""
        return repository.versions(self.folder)

    @functools.cached_property
    def served(self) -> list[int]:
        """Versions that the policy leaves."""
        return admitted(self.config, self.numbers)

    def file(self, number: int) -> Path:
        """The file that a backend opens of a version; it may not be there."""
        own = {"python": "model.py", **repository.MODEL_FILES}.get(self.backend, "")
        path = self.folder / str(number) / (self.config.default_model_filename or own)
        return path / own if self.backend == "onnxruntime" and path.is_dir() else path

    @functools.cached_property
    def graphs(self) -> dict[int, Graph | str]:
        """Structure of each served ONNX file, or why it has none; missing files are left out."""
        found: dict[int, Graph | str] = {}
        for number in self.served if self.backend == "onnxruntime" else []:
            if self.file(number).is_file():
                try:
                    found[number] = _graph.read(self.file(number))
                except (ValueError, OSError) as error:
                    found[number] = str(error)
        return found

    @functools.cached_property
    def whole(self) -> list[tuple[int, Graph]]:
        """Served versions whose file could be read, with its structure."""
        return [(n, graph) for n, graph in self.graphs.items() if isinstance(graph, Graph)]

    @functools.cached_property
    def completed(self) -> pb.ModelConfig:
        """The configuration with what the server would add to it."""
        config = pb.ModelConfig()
        config.CopyFrom(self.config)
        if self.whole and not (config.input and config.output):
            _complete(config, self.whole[-1][1])
        return config

    @property
    def complete(self) -> bool:
        """Whether its inputs and outputs are known, written or completed."""
        return bool(self.completed.output) and not self.fault


def _complete(config: pb.ModelConfig, graph: Graph) -> None:
    """What the server does where inputs or outputs are not written: see `rule completed`."""
    tensors = [*graph.inputs.values(), *graph.outputs.values()]
    if all(tensor.shape[:1] == (-1,) for tensor in tensors):
        config.max_batch_size = config.max_batch_size or DEFAULT_MAX_BATCH
    batching = config.max_batch_size > 0
    for blocks, side in ((config.input, graph.inputs), (config.output, graph.outputs)):
        if blocks:
            continue
        for name, tensor in sorted(side.items()):
            dims = tensor.shape[1:] if batching else tensor.shape
            block = blocks.add(name=name, dims=dims or (1,))
            block.data_type = pb.DataType.Value(tensor.dtype or "TYPE_INVALID")
            if not dims and batching:
                block.reshape.SetInParent()


def fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes may be one: -1 is any size."""
    return len(shape) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(shape, other, strict=True)
    )


def written(shape: tuple[int, ...] | list[int]) -> str:
    """A shape as text: [-1, 3]."""
    return f"[{', '.join(map(str, shape))}]"


def inside(folder: Path, path: Path) -> bool:
    """Whether a path, links followed, lies in a folder."""
    return path.resolve().is_relative_to(folder.resolve())


def _written(steps: Steps) -> str:
    """A field as text: ("input", 1, "dims") is input[1].dims."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return re.sub(r"^\.", "", text)
