"""What was found when a model was packaged and served."""

from __future__ import annotations

import msgspec


class PackageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model stands in the repository.

    `files` are below the model's folder; `pipeline` is the ensemble that takes raw files and
    `steps` the models it is made of, the model itself among them.
    """

    repository: str
    model: str
    version: int
    artifact_sha256: str
    max_batch: int
    instances: int
    threads: int
    cores: int
    triton_oldest: str
    files: tuple[str, ...]
    pipeline: str = ""
    steps: tuple[str, ...] = ()


class LintFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that a model breaks: an error is what a server refuses or answers wrongly for.

    `file` is below the repository; `line` and `field` are there where it is a config.pbtxt.
    `fixable` is whether --fix mends it.
    """

    rule: str
    severity: str
    model: str
    file: str
    line: int | None
    field: str
    expected: str
    got: str
    fix: str
    fixable: bool


class LintReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a server would say to a repository; `changed` are the lines that --fix changed."""

    repository: str
    triton: str | None
    models: tuple[str, ...]
    findings: tuple[LintFinding, ...]
    errors: int
    warnings: int
    changed: dict[str, tuple[str, ...]]


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model a server answers for; `golden_max_abs` is None where no golden sample is known.

    Of a pipeline it is the difference of a probability, and `golden_label` what it answers to a
    golden file. `step_of` is the pipeline that a model is only a step of.
    """

    name: str
    version: str
    golden_max_abs: float | None
    golden_label: str = ""
    step_of: str = ""


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and what it serves."""

    server: str
    reason: str
    http: str
    grpc: str
    metrics: str
    pid: int
    ready_s: float
    log: str
    models: tuple[ServedModel, ...]


class ManifestsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and what one server asks of its machine."""

    output: str
    files: tuple[str, ...]
    models: tuple[str, ...]
    image: str
    cores: int
    memory_mib: int
    gpus: int
    notes: tuple[str, ...]
