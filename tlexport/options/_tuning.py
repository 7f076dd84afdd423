"""What to ask of a search for the best settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check


class TuneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to hold, what to try, and how long."""

    slo: Annotated[str, Meta(description="latency to hold, pQUANTILE=TIME")] = "p99=20ms"
    artifact: Annotated[str, Meta(description="the artifact to serve, TARGET-PRECISION")] = (
        "onnx-fp32"
    )
    max_batch: Annotated[
        int, Meta(description="largest batch to try; 0: the largest that was verified", ge=0)
    ] = 0
    concurrency: Annotated[
        int, Meta(description="most requests in flight; tried from 1 on, doubled", ge=1)
    ] = 32
    search: Annotated[
        Literal["auto", "grid", "optuna"],
        Meta(
            description="grid: all settings; optuna: those that its sampler expects to be better; "
            "auto: optuna where there are more than --trials"
        ),
    ] = "auto"
    trials: Annotated[int, Meta(description="settings to try at most", ge=1)] = 60
    patience: Annotated[
        int, Meta(description="stop after so many settings in a row that are no better", ge=1)
    ] = 15
    window_s: Annotated[
        float, Meta(description="seconds of a window of measuring; three must agree", gt=0)
    ] = 1.0
    windows: Annotated[int, Meta(description="windows per load at most, stable or not", ge=3)] = 10
    rounds: Annotated[
        int,
        Meta(description="turns that the best and the default take at the end", ge=6),
    ] = 8
    server: Annotated[
        Literal["auto", "embedded", "docker"], Meta(description="which server to try it on")
    ] = "auto"
    seed: Annotated[int, Meta(description="order of what is tried, and the sampler", ge=0)] = 0
    force: Annotated[bool, Meta(description="forget what was tried before")] = False

    def __post_init__(self) -> None:
        check(self)
