"""Compared networks as a page: accuracy against latency."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlexport.files import write_atomic
from tlexport.pages._template import decades, filled
from tlexport.reports import SelectReport, SelectRow

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 720, 400, 60, 30, 30, 46
SMALLEST_PX, LARGEST_PX = 5.0, 20.0
"""Radius of a network's disc: its area grows with the size of the file."""
LETTER_PX = 6.5
"""Width of a letter of a label, about; those that would overlap move down."""
LINE_PX = 14.0


def write(report: SelectReport, path: Path, command: Sequence[str]) -> None:
    """Write one self-contained HTML file; it loads nothing."""
    write_atomic(path, page(report, command).encode())


def page(report: SelectReport, command: Sequence[str]) -> str:
    """The choice, the plot with its front, a row per network, how sure the ranking is."""
    return filled(
        "select.html.j2", report=report, command=shlex.join(command), chart=_chart(report)
    )


def _chart(report: SelectReport) -> dict[str, Any]:
    """Everything in pixels: latency across (logarithmic), accuracy upwards."""
    rows = report.rows
    low = min(row.p50_ms.low for row in rows) / 1.3
    high = max(row.p50_ms.high for row in rows) * 1.3
    foot = max(0.0, min(row.accuracy.low for row in rows) - 0.02)
    top = min(1.0, max(row.accuracy.high for row in rows) + 0.02)

    def across(latency_ms: float) -> float:
        share = math.log(latency_ms / low) / math.log(high / low)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def height(accuracy: float) -> float:
        share = (accuracy - foot) / (top - foot)
        return round(HEIGHT - FOOT - (HEIGHT - TOP - FOOT) * share, 1)

    largest = max(row.size_bytes for row in rows)
    points: list[dict[str, Any]] = [
        {
            "row": row,
            "x": across(row.p50_ms.value),
            "y": height(row.accuracy.value),
            "radius": round(max(SMALLEST_PX, LARGEST_PX * math.sqrt(row.size_bytes / largest)), 1),
            "across": (across(row.p50_ms.low), across(row.p50_ms.high)),
            "up": (height(row.accuracy.high), height(row.accuracy.low)),
            "kind": _kind(row, report),
        }
        for row in rows
    ]
    front = sorted((p for p in points if p["row"].front_latency), key=lambda p: p["x"])
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - FOOT,
        "points": points,
        "labels": _labels(points),
        "front": _steps(front),
        "columns": [{"x": across(each), "label": f"{each:g}"} for each in decades(low, high)],
        "rows": [{"y": height(each), "label": f"{each:.0%}"} for each in _shares(foot, top)],
    }


def _steps(front: Sequence[dict[str, Any]]) -> str:
    """The front as stairs: what accuracy can be had within each latency."""
    steps = [f"{point['x']},{point['y']}" for point in front[:1]]
    for before, point in itertools.pairwise(front):
        steps += [f"{point['x']},{before['y']}", f"{point['x']},{point['y']}"]
    return " ".join(steps)


def _kind(row: SelectRow, report: SelectReport) -> str:
    if row.backbone == report.chosen:
        return "chosen"
    return "front" if row.front_latency else "plain"


def _labels(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A name beside each disc, left of it where the right has no room; none on another."""
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: p["y"]):
        name = point["row"].backbone.partition("=")[0].rpartition("/")[2]
        wide = LETTER_PX * len(name)
        ends = point["x"] + point["radius"] + 4 + wide > WIDTH
        x = point["x"] + (point["radius"] + 4) * (-1 if ends else 1)
        label = {
            "text": name,
            "x": round(x, 1),
            "y": point["y"] + 4,
            "anchor": "end" if ends else "start",
            "from": x - wide if ends else x,
            "to": x if ends else x + wide,
        }
        while any(_meet(label, other) for other in placed):
            label["y"] += 1
        placed.append(label)
    return placed


def _meet(one: dict[str, Any], other: dict[str, Any]) -> bool:
    apart: bool = one["from"] > other["to"] or other["from"] > one["to"]
    return not apart and abs(one["y"] - other["y"]) < LINE_PX


def _shares(foot: float, top: float) -> list[float]:
    """Some five round shares from `foot` to `top`."""
    step = next(each for each in (0.01, 0.02, 0.05, 0.1, 0.2) if (top - foot) / each <= 6)
    return [n * step for n in range(math.ceil(foot / step), math.floor(top / step + 1e-9) + 1)]
