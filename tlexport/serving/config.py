"""A model's config.pbtxt, one function per block.

Made through tritonclient's own protobuf, so every field is one the server knows, and always fully
specified, so that the server has nothing to complete.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.errors import OptionError, RepositoryError
from tlexport.spec import TRITON_DTYPES, ModelSpec, Tensors, TensorSpec

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
WARMUP = "warmup"
SPEC_PARAMETER = "tlexport_spec"
DIGESTS_PARAMETER = "tlexport_artifact_sha256"
"""JSON {version: sha256 of the artifact}: a configuration is one for all versions of a model."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model shall be served: every number a configuration needs."""

    name: str
    backend: str
    max_batch: int
    queue_delay_us: int
    instances: int
    threads: int
    keep_versions: int
    preferred: tuple[int, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an ensemble: a model's own tensors by name, each to the ensemble's name for it."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def thread_budget(instances: int, threads: int, cores: int) -> tuple[int, int]:
    """Instances and threads per instance that fit the cores; 0 asks for the default.

    Raises:
        OptionError: instances x threads is more than the cores.
    """
    copies = instances or 1
    each = threads or max(1, cores // copies)
    if copies * each > cores:
        raise OptionError(
            f"instances x threads within the {cores} cores this process may use",
            got=f"{copies} x {each} = {copies * each}",
            fix=f"pass --instances {min(copies, cores)} --threads "
            f"{max(1, cores // min(copies, cores))}, or fewer: more threads than cores serve "
            "slower",
        )
    return copies, each


def build(
    spec: ModelSpec, settings: Settings, sample: Tensors, digests: Mapping[str, str]
) -> pb.ModelConfig:
    """The whole configuration. `sample` is one golden input per name: [1, ...].

    Raises:
        RepositoryError: the server could not batch these tensors.
    """
    config = pb.ModelConfig(name=settings.name, backend=settings.backend)
    config.max_batch_size = settings.max_batch
    config.input.extend(input_block(tensor, settings.max_batch) for tensor in spec.inputs)
    config.output.extend(output_block(tensor, settings.max_batch) for tensor in spec.outputs)
    if spec.labels:
        config.output[_labelled(spec)].label_filename = LABELS
    config.version_policy.latest.num_versions = settings.keep_versions
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=settings.instances)
    if settings.max_batch > 1:
        config.dynamic_batching.CopyFrom(batching_block(settings))
    config.model_warmup.extend(warmup_blocks(spec, settings.max_batch, sample))
    for name, value in parameters(spec, settings, digests).items():
        config.parameters[name].string_value = value
    return config


def ensemble(
    spec: ModelSpec,
    settings: Settings,
    steps: Sequence[Step],
    number: int,
    digests: Mapping[str, str],
) -> pb.ModelConfig:
    """The configuration of an ensemble whose steps are all of version `number`."""
    config = pb.ModelConfig(name=settings.name, platform="ensemble")
    config.max_batch_size = settings.max_batch
    config.input.extend(input_block(tensor, settings.max_batch) for tensor in spec.inputs)
    config.output.extend(output_block(tensor, settings.max_batch) for tensor in spec.outputs)
    config.version_policy.latest.num_versions = settings.keep_versions
    for step in steps:
        block = config.ensemble_scheduling.step.add(model_name=step.model, model_version=number)
        block.input_map.update(step.inputs)
        block.output_map.update(step.outputs)
    for name, value in described(spec, digests).items():
        config.parameters[name].string_value = value
    return config


def _labelled(spec: ModelSpec) -> int:
    """Which output the labels belong to: the first of [batch, labels], else the first."""
    shape = ("batch", len(spec.labels))
    fits = (place for place, tensor in enumerate(spec.outputs) if tensor.shape == shape)
    return next(fits, 0)


def input_block(tensor: TensorSpec, max_batch: int) -> pb.ModelInput:
    """An input with its dims as the server counts them."""
    dims, reshape = _dims(tensor, max_batch)
    block = pb.ModelInput(name=tensor.name, data_type=_data_type(tensor), dims=dims)
    if reshape:
        block.reshape.SetInParent()
    return block


def output_block(tensor: TensorSpec, max_batch: int) -> pb.ModelOutput:
    """An output with its dims as the server counts them."""
    dims, reshape = _dims(tensor, max_batch)
    block = pb.ModelOutput(name=tensor.name, data_type=_data_type(tensor), dims=dims)
    if reshape:
        block.reshape.SetInParent()
    return block


def batching_block(settings: Settings) -> pb.ModelDynamicBatching:
    """How requests are joined: up to the maximum, waiting no longer than the delay."""
    return pb.ModelDynamicBatching(
        preferred_batch_size=settings.preferred or [settings.max_batch],
        max_queue_delay_microseconds=settings.queue_delay_us,
    )


def warmup_blocks(spec: ModelSpec, max_batch: int, sample: Tensors) -> list[pb.ModelWarmup]:
    """A warm-up at batch 1 and one at the maximum, from a golden sample.

    The server makes `batch_size` requests of one row each from the file of that row.
    """
    blocks = []
    for size in sorted({1, max(1, max_batch)}):
        block = pb.ModelWarmup(name=f"batch-{size}", batch_size=size)
        for tensor in spec.inputs:
            array = sample[tensor.name]
            entry = block.inputs[tensor.name]
            entry.data_type = _data_type(tensor)
            shape = array.shape[1:] if max_batch else array.shape
            entry.dims.extend(shape or (1,))
            entry.input_data_file = warmup_name(array)
        blocks.append(block)
    return blocks


def parameters(spec: ModelSpec, settings: Settings, digests: Mapping[str, str]) -> dict[str, str]:
    """The thread budget, and what a client may want to know of the model."""
    return {
        "intra_op_thread_count": str(settings.threads),
        "inter_op_thread_count": "1",
        **described(spec, digests),
    }


def described(spec: ModelSpec, digests: Mapping[str, str]) -> dict[str, str]:
    """What a client may want to know of the model, as parameters."""
    return {
        SPEC_PARAMETER: msgspec.json.encode(spec).decode(),
        DIGESTS_PARAMETER: msgspec.json.encode(dict(digests), order="deterministic").decode(),
    }


def text(config: pb.ModelConfig) -> str:
    """The configuration as text: equal configurations, equal text.

    `max_batch_size: 0` is written out: left away, the server would complete it to 4.
    """
    written = str(text_format.MessageToString(config, as_utf8=True))
    return written if config.max_batch_size else f"max_batch_size: 0\n{written}"


def parse(path: Path) -> pb.ModelConfig:
    """Read a config.pbtxt.

    Raises:
        RepositoryError: it is not the text of a model configuration.
    """
    try:
        return parse_text(path.read_text(encoding="utf-8"))
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(
            f"a Triton model configuration in {str(path)!r}",
            got=str(error),
            fix="correct the file, or package the model again",
        ) from error


def parse_text(written: str) -> pb.ModelConfig:
    """Read the text of a configuration."""
    return text_format.Parse(written, pb.ModelConfig())


def digests_of(config: pb.ModelConfig) -> dict[str, str]:
    """Version -> sha256 of its artifact, as far as the configuration tells."""
    value = config.parameters[DIGESTS_PARAMETER].string_value
    return msgspec.json.decode(value, type=dict[str, str]) if value else {}


def warmup_name(array: np.ndarray) -> str:
    """File of a warm-up input: named by its content, so that an older configuration keeps its."""
    return hashlib.sha256(raw_bytes(array)).hexdigest()[:16]


def raw_bytes(array: np.ndarray) -> bytes:
    """An array as the server reads it from a file: texts with their length before them."""
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).tobytes()
    items = [x if isinstance(x, bytes) else str(x).encode() for x in array.ravel()]
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def _data_type(tensor: TensorSpec) -> int:
    name = TRITON_DTYPES[tensor.dtype]
    return int(pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"))


def _dims(tensor: TensorSpec, max_batch: int) -> tuple[list[int], bool]:
    """Dims as a configuration writes them, and whether they need a reshape to nothing."""
    sizes = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if max_batch == 0:
        return sizes or [1], False
    if not tensor.batched:
        raise RepositoryError(
            f"{tensor.name!r} with the axis 'batch' first, to be batched by the server",
            got=f"[{', '.join(map(str, tensor.shape))}]",
            fix="pass --max-batch 0, or export the model with a free batch axis",
        )
    return (sizes[1:], False) if len(sizes) > 1 else ([1], True)
