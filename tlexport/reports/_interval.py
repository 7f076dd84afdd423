"""An estimate, and how sure it is."""

from __future__ import annotations

import msgspec


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
