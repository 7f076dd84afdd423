"""What a caller may ask for when a model is asked."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tlexport.checks import check
from tlexport.errors import OptionError
from tlexport.options._making import DataOptions, SkipBroken

Share = Annotated[float, Meta(gt=0)]
Room = Annotated[float, Meta(ge=0)]
FACTOR = 8.0
"""Healthy exports of 16 architectures are off by 0.5 to 2.6 times the original's own rounding."""


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
    skip_broken: SkipBroken = False
    data: DataOptions = msgspec.field(default_factory=DataOptions)

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
    factor: Annotated[
        float,
        Meta(
            description="how many times the original's own rounding (against float64) an answer "
            "may be off",
            gt=0,
        ),
    ] = FACTOR
    tolerance: Annotated[
        Share | None,
        Meta(
            description="largest difference as a share of the outputs' scale, in place of the "
            "noise floor; default where there is no original: 1e-4 for fp32"
        ),
    ] = None
    atol: Annotated[
        Room | None,
        Meta(description="largest absolute difference, in place of the noise floor"),
    ] = None
    rtol: Annotated[
        Room | None,
        Meta(description="largest difference as a share of each element, with --atol"),
    ] = None
    max_batch: Annotated[int, Meta(description="largest batch that will be served", ge=1)] = 8
    data: Annotated[
        str | None,
        Meta(description="labelled examples, to tell the change in accuracy; as for `train`"),
    ] = None
    max_accuracy_drop: Annotated[
        float, Meta(description="largest loss of accuracy on --data that passes", ge=0, le=1)
    ] = 0.01
    explain: Annotated[
        bool,
        Meta(description="walk the graph node by node even where it passes; a failure always is"),
    ] = False
    columns: DataOptions = msgspec.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.tolerance is not None and (self.atol is not None or self.rtol is not None):
            raise OptionError(
                "one way to allow a difference",
                got="--tolerance beside --atol or --rtol",
                fix="leave all three out: the noise floor judges every model by its own rounding",
            )
