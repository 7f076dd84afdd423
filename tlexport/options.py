"""What a caller may ask for: frozen, self-checking records."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check as check
from tlexport.checks import check_name as check_name
from tlexport.errors import OptionError

Count = Annotated[int, Meta(ge=1)]


class DataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a table the examples stand; a folder per class needs none of these."""

    text_column: Annotated[
        str | None, Meta(description="column of the texts in a table; default: text, sentence ...")
    ] = None
    label_column: Annotated[
        str | None, Meta(description="column of the labels in a table; default: label, class ...")
    ] = None

    def __post_init__(self) -> None:
        check(self)


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to fine-tune."""

    task: Annotated[
        str, Meta(description="what the model is for: image-, text- or audio-classification")
    ] = "image-classification"
    backbone: Annotated[
        str, Meta(description="SOURCE/NAME of the pre-trained network, see `tlexport backbones`")
    ] = "timm/tf_efficientnet_lite0"
    weights: Annotated[
        str | None,
        Meta(
            description="hub (default), random, package:NAME of an installed package, or a "
            "safetensors file or checkpoint"
        ),
    ] = None
    name: Annotated[
        str | None, Meta(description="the model's name in the repository; default: the bundle's")
    ] = None
    seed: Annotated[
        int,
        Meta(description="fixes the split, the head's start and the order", ge=0, le=2**32 - 1),
    ] = 0
    val_fraction: Annotated[
        float, Meta(description="share held out, where there is no val/ folder", gt=0, lt=1)
    ] = 0.2
    trials: Annotated[
        int,
        Meta(description="settings of the head's optimiser to try", ge=1),
    ] = 8
    epochs: Annotated[int, Meta(description="most passes over the features per trial", ge=1)] = 60
    patience: Annotated[
        int, Meta(description="epochs without a better validation loss before a stop", ge=1)
    ] = 8
    batch: Annotated[
        int, Meta(description="examples per forward pass; 0: 8 on a CPU, 64 on a GPU", ge=0)
    ] = 0
    class_weights: Annotated[
        bool, Meta(description="weigh each class by the inverse of its share")
    ] = False
    skip_broken: Annotated[
        bool, Meta(description="leave unreadable files out, naming and counting them")
    ] = False
    augment: Annotated[
        bool, Meta(description="not possible while features are cached; refused with the reason")
    ] = False
    golden: Annotated[
        int, Meta(description="held-out inputs kept in the bundle as golden samples", ge=1)
    ] = 32
    pooling: Annotated[
        Literal["auto", "mean", "cls", "last", "segments"],
        Meta(
            description="features of a sequence: mean, its first (cls) or last token, or the "
            "means of five parts; auto: as the backbone was trained"
        ),
    ] = "auto"
    max_length: Annotated[
        int,
        Meta(description="tokens of a text at most; 0: as many as the backbone takes, 512", ge=0),
    ] = 0
    max_seconds: Annotated[
        float,
        Meta(description="seconds of a clip at most; 0: the longest, as far as it goes", ge=0),
    ] = 0
    force: Annotated[bool, Meta(description="replace an existing bundle")] = False
    data: DataOptions = DataOptions()

    def __post_init__(self) -> None:
        check(self)
        if self.augment:
            raise OptionError(
                "no --augment with a frozen backbone",
                got="--augment",
                fix="leave it out: features are computed once and kept, so each image has exactly "
                "one feature vector and a random crop or flip would never be seen again",
            )
        if self.name is not None:
            check_name(self.name)


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which model to take in, and what it takes; exactly one of the first five is set."""

    module: Annotated[
        str | None,
        Meta(description="PACKAGE.MODULE:FACTORY, a function that returns your torch.nn.Module"),
    ] = None
    huggingface: Annotated[
        str | None, Meta(description="folder that `save_pretrained` of transformers wrote")
    ] = None
    backbone: Annotated[
        str | None,
        Meta(description="SOURCE/NAME of a torchvision or timm network, with --weights"),
    ] = None
    pt2: Annotated[str | None, Meta(description="file that `torch.export.save` wrote")] = None
    onnx: Annotated[str | None, Meta(description="ONNX file that another tool wrote")] = None
    weights: Annotated[
        str | None, Meta(description="state dict: a safetensors file or torch checkpoint")
    ] = None
    inputs: Annotated[
        tuple[str, ...],
        Meta(
            description="NAME:DTYPE[AXES], and =LOW..HIGH where its values have a range, such as "
            "ids:int64[batch,sequence<=512]=0..30521; once per input"
        ),
    ] = ()
    output_names: Annotated[
        tuple[str, ...],
        Meta(
            description="an output to keep, or its new name; once per output; default: all, "
            "by the model's own names"
        ),
    ] = ()
    labels: Annotated[str | None, Meta(description="file with a label a line")] = None
    samples: Annotated[
        str | None,
        Meta(
            description="real inputs: FILE.npz with arrays by name (answers too, if there are), "
            "or a folder of them or of images"
        ),
    ] = None
    name: Annotated[
        str | None, Meta(description="the model's name in the repository; default: the bundle's")
    ] = None
    golden: Annotated[
        int, Meta(description="samples kept in the bundle, or drawn where none are given", ge=1)
    ] = 32
    seed: Annotated[int, Meta(description="fixes what is drawn", ge=0, le=2**32 - 1)] = 0
    trust_remote_code: Annotated[
        bool, Meta(description="run Python code that lies in the Hugging Face folder")
    ] = False
    force: Annotated[bool, Meta(description="replace an existing bundle")] = False

    def __post_init__(self) -> None:
        check(self)
        if self.name is not None:
            check_name(self.name)


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the model shall become."""

    target: Annotated[str, Meta(description="what to make of the model")] = "onnx"
    triton: Annotated[
        str | None,
        Meta(description="release YY.MM that must read the file; default: the oldest that can"),
    ] = None
    force: Annotated[bool, Meta(description="replace an artifact that is still current")] = False

    def __post_init__(self) -> None:
        check(self)


class RuntimeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a runtime may use the machine, and which artifact it runs."""

    threads: Annotated[
        int, Meta(description="threads in all; 0: the cores this process may use", ge=0)
    ] = 0
    instances: Annotated[
        int, Meta(description="copies of the model that share the threads", ge=1)
    ] = 1
    artifact: Annotated[str, Meta(description="the artifact to run, TARGET-PRECISION")] = (
        "onnx-fp32"
    )
    model: Annotated[
        str | None, Meta(description="the model's name on a server; default: the bundle's")
    ] = None
    version: Annotated[
        str, Meta(description="the model's version on a server; default: the one in service")
    ] = ""
    timeout_s: Annotated[float, Meta(description="longest wait for one answer", gt=0)] = 60.0

    def __post_init__(self) -> None:
        check(self)

    def threads_each(self, cores: int) -> int:
        """Threads of each instance, so that instances x threads stays within the budget.

        Raises:
            OptionError: more instances than threads.
        """
        threads = self.threads or cores
        if self.instances > threads:
            raise OptionError(
                "at most as many instances as threads",
                got=f"--instances {self.instances} with {threads} threads",
                fix="pass fewer --instances or more --threads: instances that share a core only "
                "wait for each other",
            )
        return threads // self.instances


class EvaluateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask about labelled examples."""

    runtime: Annotated[
        str | None,
        Meta(description="who answers, NAME@WHERE; default: the original, eager@cpu, if there is"),
    ] = None
    against: Annotated[
        str, Meta(description="whom to compare with on the same examples, NAME@WHERE, or none")
    ] = "eager@cpu"
    batch: Annotated[int, Meta(description="examples per question", ge=1)] = 8
    skip_broken: Annotated[
        bool, Meta(description="leave unreadable files out, naming and counting them")
    ] = False
    data: DataOptions = DataOptions()

    def __post_init__(self) -> None:
        check(self)


class PredictOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask about raw files, and how many labels to tell."""

    runtime: Annotated[
        str | None,
        Meta(description="who answers for a bundle, NAME@WHERE; default: the export, else eager"),
    ] = None
    top: Annotated[int, Meta(description="labels to tell per file", ge=1)] = 3
    batch: Annotated[int, Meta(description="files per question", ge=1)] = 8

    def __post_init__(self) -> None:
        check(self)


class VerifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How strictly to compare."""

    reference: Annotated[
        str | None,
        Meta(
            description="the runtime that is right, NAME@WHERE; default: the original, eager@cpu; "
            "of an imported ONNX file its stored answers, else itself unoptimised"
        ),
    ] = None
    candidate: Annotated[str, Meta(description="the runtime to be proven equal")] = "ort@cpu"
    tolerance: Annotated[
        float,
        Meta(description="largest difference, as a share of the outputs' scale", gt=0),
    ] = 1e-4
    max_batch: Annotated[int, Meta(description="largest batch that will be served", ge=1)] = 8

    def __post_init__(self) -> None:
        check(self)


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
    instances: Annotated[int, Meta(description="copies of the model; 0: one", ge=0)] = 0
    threads: Annotated[
        int, Meta(description="threads per instance; 0: cores / instances", ge=0)
    ] = 0
    keep_versions: Annotated[
        int, Meta(description="versions the server keeps loaded, newest first", ge=1)
    ] = 1
    triton: Annotated[str | None, Meta(description="release YY.MM that must read the file")] = None
    allow_signature_change: Annotated[
        bool, Meta(description="take a version with other inputs, outputs or labels")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        if self.name is not None:
            check_name(self.name)


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


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, how often, of whom."""

    runtimes: Annotated[
        tuple[str, ...],
        Meta(
            description="NAME@WHERE, the first is the yardstick; default: the original (eager@cpu, "
            "or an imported ONNX file unoptimised) and ort@cpu"
        ),
    ] = ()
    batches: Annotated[tuple[Count, ...], Meta(description="batch sizes", min_length=1)] = (1, 8)
    concurrency: Annotated[int, Meta(description="requests in flight (closed loop)", ge=1)] = 1
    rounds: Annotated[
        int, Meta(description="turns that every runtime takes; an interval needs 6", ge=6)
    ] = 10
    round_s: Annotated[float, Meta(description="seconds per turn", gt=0)] = 0.5
    warmup: Annotated[
        int, Meta(description="requests before the clock starts, per runtime and batch", ge=0)
    ] = 5
    seed: Annotated[int, Meta(description="order of the turns and the bootstrap's draws", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The main job's own choices, and how to fine-tune."""

    training: TrainOptions = TrainOptions()
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
