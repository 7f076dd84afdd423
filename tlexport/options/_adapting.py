"""How a network's own weights are fitted."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check
from tlexport.errors import OptionError

LOGS = ("tensorboard", "mlflow")

FROZEN_TOO = {"devices", "nodes"}
"""What a frozen backbone heeds, too: its features are divided."""

STILL = (
    ": a frozen network's features are computed once and kept, so each image has exactly one "
    "feature vector and a random crop or flip would never be seen again"
)


class AdaptOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What trains besides the head, and how; unasked nothing does."""

    unfreeze: Annotated[
        str,
        Meta(
            description="what trains besides the head: head (nothing), last-N (the N blocks next "
            "to it), or all"
        ),
    ] = "head"
    lora: Annotated[
        int,
        Meta(description="rank of low-rank adapters to train instead, merged at the end", ge=0),
    ] = 0
    adapt_epochs: Annotated[
        int, Meta(description="most passes over the examples while weights are adapted", ge=1)
    ] = 10
    adapt_batch: Annotated[
        int, Meta(description="examples per step, of all processes together", ge=1)
    ] = 32
    learning_rate: Annotated[
        float,
        Meta(
            description="highest rate of the head and adapters; 0: 1e-4, or 1e-3 with --lora or "
            "random weights",
            ge=0,
        ),
    ] = 0
    layer_decay: Annotated[
        float, Meta(description="each block's rate is so much of the next one's", gt=0, le=1)
    ] = 0.75
    weight_decay: Annotated[
        float, Meta(description="of all that trains but norms and biases", ge=0)
    ] = 0.05
    warmup: Annotated[
        float,
        Meta(description="share of the steps over which the rate grows; then a cosine", ge=0, lt=1),
    ] = 0.1
    label_smoothing: Annotated[
        float, Meta(description="share of each label given to all classes alike", ge=0, lt=1)
    ] = 0.1
    clip: Annotated[float, Meta(description="largest norm of the gradient; 0: any", ge=0)] = 1.0
    adapt_precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Meta(
            description="what the steps compute in; auto: bf16 where the device multiplies it, "
            "else fp32"
        ),
    ] = "auto"
    augment: Annotated[
        float,
        Meta(
            description="how strongly images and clips are changed while weights are adapted, "
            "0 to 1",
            ge=0,
            le=1,
        ),
    ] = 0
    devices: Annotated[
        int,
        Meta(description="processes on this machine, a device each; 0: as launched, else 1", ge=0),
    ] = 0
    nodes: Annotated[int, Meta(description="machines; each runs the same launcher", ge=1)] = 1
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"],
        Meta(description="how processes share the network; auto: ddp where there are several"),
    ] = "auto"
    logs: Annotated[
        tuple[str, ...],
        Meta(description="tensorboard or mlflow, beside the CSV file that is always written"),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch("head|all|last-[1-9][0-9]*", self.unfreeze):
            raise OptionError(
                "--unfreeze head, last-N or all",
                got=repr(self.unfreeze),
                fix="pass last-2, for example, to train the two blocks next to the head",
            )
        if unknown := set(self.logs) - set(LOGS):
            raise OptionError(
                "--log tensorboard or --log mlflow",
                got=", ".join(sorted(unknown)),
                fix="leave it out: a CSV file is written in any case",
            )
        if not self.active and (idle := self._changed() - FROZEN_TOO):
            flags = ", ".join(sorted(_flag(name) for name in idle))
            raise OptionError(
                f"no {flags} with a frozen backbone",
                got="neither --unfreeze nor --lora",
                fix="pass --unfreeze last-2 or all, or --lora 8, or leave it out"
                + (STILL if "augment" in idle else ": the head's own settings are searched"),
            )
        if self.lora and self.unfreeze != "head":
            raise OptionError(
                "--lora or --unfreeze, one of them",
                got=f"--lora {self.lora} --unfreeze {self.unfreeze}",
                fix="leave one out: adapters train in place of the network's own weights",
            )

    def _changed(self) -> set[str]:
        """The fields that are not as they are unasked."""
        fields = msgspec.structs.fields(type(self))
        return {field.name for field in fields if getattr(self, field.name) != field.default}

    @property
    def active(self) -> bool:
        """Whether more than the head shall train."""
        return self.unfreeze != "head" or self.lora > 0


def _flag(name: str) -> str:
    return "--" + name.removesuffix("s" if name == "logs" else "").replace("_", "-")
