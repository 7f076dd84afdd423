"""What was found when settings were searched."""

from __future__ import annotations

import msgspec

from tlexport.environment import Environment
from tlexport.reports._interval import Interval


class TunedSettings(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """How a model is served: `threads` of each instance; `preferred` batch sizes, if any."""

    instances: int
    threads: int
    max_batch: int
    queue_delay_us: int = 0
    preferred: tuple[int, ...] = ()


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a load: `quantile_ms` is that of the promise.

    It is `sure` where there were requests enough to tell it, and `stable` where three windows
    agreed.
    """

    concurrency: int
    requests: int
    errors: int
    items_per_s: float
    p50_ms: float
    quantile_ms: float
    sure: bool
    stable: bool


class TuneTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: its loads, why no more were asked, and the best that holds the promise."""

    settings: TunedSettings
    points: tuple[LoadPoint, ...]
    stopped: str
    best: LoadPoint | None


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that was tried; `gain` is the best's throughput over the default's, in turns."""

    model: str
    artifact: str
    artifact_sha256: str
    slo: str
    search: str
    space: int
    trials: tuple[TuneTrial, ...]
    resumed: int
    stopped: str
    default: TuneTrial
    best: TuneTrial
    gain: Interval | None
    different: bool
    config: str
    page: str
    cores: int
    server: str
    notes: tuple[str, ...]
    environment: Environment
