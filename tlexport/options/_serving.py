"""What a caller may ask for when a model is served."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check, check_name
from tlexport.errors import OptionError
from tlexport.options._making import TrainOptions
from tlexport.options._measuring import Count


class PackageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the model shall be served."""

    name: Annotated[str | None, Meta(description="the model's name; default: the bundle's")] = None
    artifact: Annotated[str, Meta(description="the artifact to serve, TARGET-PRECISION")] = (
        "onnx-fp32"
    )
    max_batch: Annotated[
        int, Meta(description="largest batch the server may form; 0: no batching", ge=0)
    ] = 8
    queue_delay_us: Annotated[
        int, Meta(description="longest wait for batch mates, in microseconds", ge=0)
    ] = 0
    preferred_batches: Annotated[
        tuple[Count, ...],
        Meta(
            description="batch sizes at which the server stops to wait for more; default: the "
            "largest"
        ),
    ] = ()
    instances: Annotated[int, Meta(description="copies of the model; 0: one", ge=0)] = 0
    threads: Annotated[
        int, Meta(description="threads per instance; 0: cores / instances", ge=0)
    ] = 0
    keep_versions: Annotated[
        int, Meta(description="versions the server keeps loaded, newest first", ge=1)
    ] = 1
    triton: Annotated[str | None, Meta(description="release YY.MM that must read the file")] = None
    pipeline: Annotated[
        bool,
        Meta(
            description="serve raw files, too: NAME_pipeline takes images, texts or sound and "
            "tells labels; a NAME that has one keeps it"
        ),
    ] = False
    top: Annotated[
        int,
        Meta(description="labels that the pipeline tells of each item; 0: one, or as before", ge=0),
    ] = 0
    allow_signature_change: Annotated[
        bool, Meta(description="take a version with other inputs, outputs or labels")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.name is not None:
            check_name(self.name)
        if any(size > self.max_batch for size in self.preferred_batches):
            raise OptionError(
                f"--preferred-batch of at most --max-batch, {self.max_batch}",
                got=", ".join(map(str, self.preferred_batches)),
                fix="lower the one or raise the other",
            )


class LintOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository is held against."""

    triton: Annotated[
        str | None,
        Meta(description="release YY.MM that must read the files; default: any that is known"),
    ] = None
    cores: Annotated[
        int, Meta(description="cores of the machine that serves it; 0: this one's", ge=0)
    ] = 0
    fix: Annotated[
        bool, Meta(description="make the edits that can mean but one thing; FILE.orig is kept")
    ] = False

    def __post_init__(self) -> None:
        check(self)


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server, and where it listens."""

    server: Annotated[
        Literal["auto", "embedded", "docker"],
        Meta(
            description="embedded: no Docker; docker: NVIDIA's image; auto: whichever can run here"
        ),
    ] = "auto"
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    http_port: Annotated[int, Meta(description="0: a free one", ge=0, le=65535)] = 0
    grpc_port: Annotated[int, Meta(description="0: a free one", ge=0, le=65535)] = 0
    metrics_port: Annotated[int, Meta(description="0: a free one", ge=0, le=65535)] = 0
    control: Annotated[
        Literal["none", "poll", "explicit"], Meta(description="how the server follows changes")
    ] = "none"
    image: Annotated[str, Meta(description="the image for --server docker")] = ""
    timeout_s: Annotated[float, Meta(description="longest wait until ready", gt=0)] = 120.0

    def __post_init__(self) -> None:
        check(self)


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The main job's own choices, and how to fine-tune."""

    training: TrainOptions = msgspec.field(default_factory=TrainOptions)
    repository: Annotated[str, Meta(description="the Triton model repository to install into")] = (
        "model_repository"
    )
    triton: Annotated[
        str | None,
        Meta(description="release YY.MM that must read the file; default: the oldest that can"),
    ] = None
    server: Annotated[
        Literal["auto", "embedded", "docker"], Meta(description="which server to try it on")
    ] = "auto"
    bench_s: Annotated[
        float, Meta(description="seconds of measuring per runtime and batch size", gt=0)
    ] = 5.0
    allow_signature_change: Annotated[
        bool, Meta(description="install though the model before took or answered other tensors")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if "://" in self.repository:
            raise OptionError(
                "--repository with a folder, which is served at the end",
                got=repr(self.repository),
                fix="run it with a folder, then `tlexport package BUNDLE -r URL`",
            )
