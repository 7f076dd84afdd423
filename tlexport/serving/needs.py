"""What the models of a repository need of a machine."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.errors import RepositoryError
from tlexport.serving import config, repository

SERVER_MIB = 512
"""Triton itself, and what it keeps for requests."""

COPIES = 2.0
"""Bytes of memory per byte of a model's file and instance: weights, and what ONNX Runtime makes of
them while it optimises (ResNet-50: 102 MB in the file, 335 MB in a server)."""

STEP_MIB = 256


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Cores, memory and GPUs of one server that holds all `models`.

    `cores` is the thread budget: instances x threads of those on a CPU, one for each instance on a
    GPU. `python` tells whether a model needs more than NVIDIA's image brings.
    """

    models: tuple[str, ...]
    cores: int
    memory_mib: int
    gpus: int
    python: bool


def needs(place: Path) -> Needs:
    """Add up what the configurations say.

    Raises:
        RepositoryError: it is no repository or an empty one, or a model names no thread budget.
    """
    models = repository.check(place)
    cores = gpus = 0
    size = float(SERVER_MIB)
    python = False
    for name, numbers in models.items():
        found = config.parse(place / name / config.CONFIG)
        copies, on_gpu = _instances(found)
        python |= found.backend == "python"
        if found.HasField("ensemble_scheduling"):
            continue
        cores += copies * (1 if on_gpu else _threads(name, found))
        gpus = max(gpus, int(on_gpu))
        largest = max(_bytes(place / name / str(number)) for number in numbers)
        size += COPIES * copies * _loaded(found) * largest / 2**20
    return Needs(
        models=tuple(sorted(models)),
        cores=max(1, cores),
        memory_mib=STEP_MIB * math.ceil(size / STEP_MIB),
        gpus=gpus,
        python=python,
    )


def _instances(found: pb.ModelConfig) -> tuple[int, bool]:
    copies = sum(max(1, group.count) for group in found.instance_group) or 1
    kinds = {group.kind for group in found.instance_group}
    return copies, pb.ModelInstanceGroup.KIND_GPU in kinds


def _loaded(found: pb.ModelConfig) -> int:
    """Versions that are in memory at once."""
    policy = found.version_policy
    return max(1, int(policy.latest.num_versions), len(policy.specific.versions))


def _threads(name: str, found: pb.ModelConfig) -> int:
    """Threads of an instance: a Python model computes in one."""
    if found.backend == "python":
        return 1
    told = MessageToDict(found).get("parameters", {})
    value = told.get("intra_op_thread_count", {}).get("stringValue", "0")
    if not value.isdigit() or value == "0":
        raise RepositoryError(
            f"a thread budget for {name!r}: the parameter intra_op_thread_count",
            got=value if value != "0" else "none, which takes every core of the node per instance",
            fix="package the model again, or write the parameter into its config.pbtxt",
        )
    return int(value)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
