"""What a caller may ask for when a model is made."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check, check_name
from tlexport.errors import OptionError
from tlexport.options._adapting import AdaptOptions

HEAD_TRIALS = 8

Task = Annotated[
    str, Meta(description="what the model is for: image-, text- or audio-classification")
]
Batch = Annotated[
    int, Meta(description="examples per forward pass; 0: 8 on a CPU, 64 on a GPU", ge=0)
]
SkipBroken = Annotated[
    bool, Meta(description="leave unreadable files out, naming and counting them")
]
MaxLength = Annotated[
    int, Meta(description="tokens of a text at most; 0: as many as the backbone takes, 512", ge=0)
]
MaxSeconds = Annotated[
    float, Meta(description="seconds of a clip at most; 0: the longest, as far as it goes", ge=0)
]


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

    task: Task = "image-classification"
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
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="settings to try: of the head's optimiser (8), or, where weights are "
            "adapted, of rates, depth and augmentation (1)"
        ),
    ] = None
    epochs: Annotated[int, Meta(description="most passes over the features per trial", ge=1)] = 60
    patience: Annotated[
        int, Meta(description="epochs without a better validation loss before a stop", ge=1)
    ] = 8
    batch: Batch = 0
    feature_precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Meta(
            description="what the frozen network computes in; auto: bf16 where the processor "
            "multiplies it and the examples are many; both ask a sample first whether the head "
            "stays within a point of accuracy"
        ),
    ] = "auto"
    class_weights: Annotated[
        bool, Meta(description="weigh each class by the inverse of its share")
    ] = False
    skip_broken: SkipBroken = False
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
    max_length: MaxLength = 0
    max_seconds: MaxSeconds = 0
    force: Annotated[bool, Meta(description="replace an existing bundle")] = False
    data: DataOptions = msgspec.field(default_factory=DataOptions)
    adapt: AdaptOptions = msgspec.field(default_factory=AdaptOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.name is not None:
            check_name(self.name)

    @property
    def head_trials(self) -> int:
        """Settings of the head's optimiser to try."""
        return HEAD_TRIALS if self.trials is None or self.adapt.active else self.trials

    @property
    def adapt_trials(self) -> int:
        """Settings of an adaptation to try."""
        return self.trials or 1


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
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "auto"],
        Meta(
            description="what the network computes in; bf16 stores weights alone, auto makes fp16 "
            "and int8 and tells the fastest that holds --max-accuracy-drop"
        ),
    ] = "fp32"
    io_precision: Annotated[
        Literal["fp32", "fp16"],
        Meta(
            description="floating-point inputs and outputs of the file; fp16, with --precision "
            "fp16 alone, halves what travels, and the server asks clients for it"
        ),
    ] = "fp32"
    data: Annotated[
        str | None,
        Meta(
            description="labelled examples as `train` reads them: what trained calibrates, what "
            "was held out judges; default: golden samples calibrate"
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        Meta(
            description="accuracy that may be lost, 0.01 is one point: int8 leaves nodes in fp32 "
            "until it holds; default: no limit, with auto 0.01"
        ),
    ] = None
    calibration: Annotated[
        Literal["auto", "entropy", "percentile", "minmax"],
        Meta(description="how int8 chooses ranges; auto: whichever errs least"),
    ] = "auto"
    quantization: Annotated[
        Literal["auto", "static", "dynamic"],
        Meta(
            description="scales of int8 activations: of the calibration, or of each batch; auto: "
            "whichever is faster and holds"
        ),
    ] = "auto"
    seed: Annotated[
        int,
        Meta(
            description="which examples calibrate, and the split of a model not trained here",
            ge=0,
            le=2**32 - 1,
        ),
    ] = 0
    force: Annotated[bool, Meta(description="replace an artifact that is still current")] = False
    table: DataOptions = msgspec.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        check(self)
        drop = self.max_accuracy_drop
        if drop is not None and not 0 <= drop < 1:
            raise OptionError(
                "--max-accuracy-drop as a share, 0 or more and below 1",
                got=str(drop),
                fix="pass 0.01 for one point",
            )
        if self.io_precision == "fp16" != self.precision:
            raise OptionError(
                "--io-precision fp16 with --precision fp16",
                got=f"--precision {self.precision}",
                fix="leave one away, or pass --precision fp16",
            )
        judged = self.precision == "auto" or drop is not None
        if judged and (self.data is None or self.precision == "fp32"):
            raise OptionError(
                "labelled examples (--data) and a --precision below fp32 to hold an accuracy",
                got=f"--precision {self.precision}, --data {self.data or 'not given'}",
                fix="pass --data with the folder or table you trained on; golden samples are too "
                "few to tell a point of accuracy",
            )

    @property
    def budget(self) -> float | None:
        """The accuracy that may be lost; None for any."""
        if self.precision == "auto" and self.max_accuracy_drop is None:
            return 0.01
        return self.max_accuracy_drop
