"""A bench report as a page for people."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlexport.files import write_atomic
from tlexport.pages._template import filled
from tlexport.reports import BenchReport, BenchRow

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 460, 260, 50, 26, 20, 34
COLOURS = 8
SHARES = [place / 50 for place in range(51)]
MARKED = (0.0, 0.5, 0.9, 0.99)
"""Percentiles that have a line of their own along the axis of the distributions."""


def write(report: BenchReport, path: Path, command: Sequence[str]) -> None:
    """Write one self-contained HTML file; it loads nothing."""
    write_atomic(path, page(report, command).encode())


def page(report: BenchReport, command: Sequence[str]) -> str:
    """Tables, latency distributions, throughput against latency, where the time goes, machine."""
    names = list(dict.fromkeys(row.runtime for row in report.rows))
    colours = {name: place % COLOURS for place, name in enumerate(names)}
    return filled(
        "bench.html.j2",
        report=report,
        command=shlex.join(command),
        groups=_groups(report),
        colours=colours,
        distributions=[_distribution(rows, colours, t) for t, rows in _groups(report)],
        plane=_plane(report.rows, colours),
        bars=[_bar(row, title) for title, rows in _groups(report) for row in rows if row.spent],
        size={"w": WIDTH, "h": HEIGHT, "l": LEFT, "r": WIDTH - RIGHT, "t": TOP, "f": HEIGHT - FOOT},
    )


def _groups(report: BenchReport) -> list[tuple[str, list[BenchRow]]]:
    """Rows that are held against each other, under the title of their table."""
    found: dict[str, list[BenchRow]] = {}
    for row in report.rows:
        title = f"batch {row.batch}"
        if row.rate_per_s is not None and not row.searched:
            title += f", {row.rate_per_s:g} requests per second"
        elif report.scenario in ("closed-loop", "offline"):
            title += f", {row.concurrency} in flight"
        found.setdefault(title, []).append(row)
    return list(found.items())


def _distribution(
    rows: Sequence[BenchRow], colours: dict[str, int], title: str
) -> dict[str, Any] | None:
    """Latency at each percentile, one line per runtime; the tail is stretched (1, 2, 3 nines)."""
    known = [row for row in rows if row.quantiles_ms]
    values = [value for row in known for value in row.quantiles_ms]
    if not values or min(values) <= 0:
        return None
    scale = _Scale(min(values), max(values), HEIGHT - FOOT, TOP)
    lines = []
    for row in known:
        places = dict(zip(SHARES, row.quantiles_ms, strict=True))
        for share, found in ((0.99, row.p99_ms), (0.95, row.p95_ms)):
            if found is not None:
                places[share] = found.value
        points = [
            f"{_along(share):.1f},{scale.place(ms):.1f}"
            for share, ms in sorted(places.items())
            if share < 1
        ]
        lines.append({"colour": colours[row.runtime], "points": " ".join(points), "row": row})
    return {
        "title": title,
        "lines": lines,
        "ticks": scale.ticks(),
        "marks": [{"x": _along(m), "label": f"p{m * 100:g}" if m else "min"} for m in MARKED],
    }


def _along(share: float) -> float:
    """Where a percentile stands: each nine takes as much room as the half below it."""
    stretched = -math.log10(max(1 - share, 1e-3)) / 3
    return LEFT + (WIDTH - LEFT - RIGHT) * stretched * 1.35 if share < 0.995 else WIDTH - RIGHT


def _plane(rows: Sequence[BenchRow], colours: dict[str, int]) -> dict[str, Any] | None:
    """Throughput against the median latency; a runtime's loads at one batch are joined."""
    known = [row for row in rows if row.p50_ms is not None and row.items_per_s.value > 0]
    if not known:
        return None
    waits = [row.p50_ms.value for row in known if row.p50_ms is not None]
    rates = [row.items_per_s.value for row in known]
    up = _Scale(min(waits), max(waits), HEIGHT - FOOT, TOP)
    across = _Scale(min(rates), max(rates), LEFT, WIDTH - RIGHT)
    points = []
    for row, wait, rate in zip(known, waits, rates, strict=True):
        label = f"{row.batch}" if row.concurrency == 1 else f"{row.batch}x{row.concurrency}"
        points.append(
            {
                "x": round(across.place(rate), 1),
                "y": round(up.place(wait), 1),
                "colour": colours[row.runtime],
                "label": label,
                "told": f"{row.runtime}, batch {row.batch}: {rate:.4g} items/s, {wait:.3g} ms",
                "line": (row.runtime, row.batch),
            }
        )
    lines: dict[Any, list[dict[str, Any]]] = {}
    for point in points:
        lines.setdefault(point["line"], []).append(point)
    return {
        "points": points,
        "lines": [
            {
                "colour": line[0]["colour"],
                "points": " ".join(
                    f"{p['x']},{p['y']}" for p in sorted(line, key=lambda p: float(p["x"]))
                ),
            }
            for line in lines.values()
            if len(line) > 1
        ],
        "up": up.ticks(),
        "across": across.ticks(),
    }


def _bar(row: BenchRow, title: str) -> dict[str, Any]:
    """The parts of the mean latency, in percent of it."""
    spent = row.spent
    assert spent is not None
    parts = {
        "client": spent.client_ms,
        "wire": spent.wire_ms,
        "queue": spent.queue_ms,
        "compute": spent.compute_ms,
    }
    whole = sum(parts.values()) or 1.0
    return {
        "title": title,
        "row": row,
        "parts": [
            {"name": name, "ms": ms, "percent": round(100 * ms / whole, 2)}
            for name, ms in parts.items()
        ],
    }


class _Scale:
    """A logarithmic axis between two values, in pixels from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high = low / 1.08, high * 1.08
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Where a value stands; beyond the ends, at the end."""
        span = math.log(self._high / self._low)
        share = math.log(min(max(value, self._low), self._high) / self._low) / span
        return self._start + (self._end - self._start) * share

    def ticks(self) -> list[dict[str, Any]]:
        """Round values within: 1, 2, 5 of each power of ten; where those are too few, more."""
        for steps in ((1.0, 2.0, 5.0), (1, 1.5, 2, 3, 5, 7), [n / 10 for n in range(10, 100)]):
            found = self._round(steps)
            if len(found) >= 3:
                break
        return found[:: max(1, len(found) // 6)]

    def _round(self, steps: Sequence[float]) -> list[dict[str, Any]]:
        powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        return [
            {"at": round(self.place(value), 1), "label": _plain(value)}
            for value in values
            if self._low <= value <= self._high
        ]


def _plain(value: float) -> str:
    """A round number without an exponent."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.3f}".rstrip("0").rstrip(".")
