"""What was found when pre-trained networks were compared."""

from __future__ import annotations

import msgspec

from tlexport.environment import Environment
from tlexport.reports._interval import Interval


class SelectRow(msgspec.Struct, frozen=True, kw_only=True):
    """A network: how often heads on its features are right, and what it costs at batch 1.

    `behind` is its accuracy less the best's over the same examples; all those intervals hold
    together with 95 %. `likely_best` is how often it would be the best on other examples.
    `front_latency` and `front_size`: no other is as accurate and faster, or smaller. `size_bytes`
    is of the exported file, `penalty` that of its heads.
    """

    backbone: str
    weights: str
    accuracy: Interval
    behind: Interval
    different: bool
    likely_best: float
    p50_ms: Interval
    p90_ms: Interval | None
    size_bytes: int
    parameters: int
    width: int
    front_latency: bool
    front_size: bool
    penalty: float
    loss: float
    features_s: float
    features_reused: int
    export_s: float
    export_reused: bool
    notes: tuple[str, ...]


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A network that could not take part, and why."""

    backbone: str
    reason: str


class SelectReport(msgspec.Struct, frozen=True, kw_only=True):
    """All networks, the most accurate first; `backbone` is as it was asked for.

    `chosen` is the one that `rule` picks, and `command` trains it; where none holds the limits
    both are empty, and `nearest` tells who comes closest. `examples` were held out, of the
    `available`; `folds` is 1 where the user's own val/ was.
    """

    data: str
    task: str
    labels: tuple[str, ...]
    examples: int
    available: int
    folds: int
    runtime: str
    threads: int
    rounds: int
    round_s: float
    rows: tuple[SelectRow, ...]
    left_out: tuple[LeftOut, ...]
    rule: str
    chosen: str
    nearest: str
    command: str
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    seed: int
    environment: Environment

    @property
    def best(self) -> SelectRow:
        """The most accurate."""
        return self.rows[0]

    @property
    def row(self) -> SelectRow | None:
        """The chosen one, if there is."""
        return next((row for row in self.rows if row.backbone == self.chosen), None)
