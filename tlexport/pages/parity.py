"""A parity report as a page for people."""

from __future__ import annotations

import math

from tlexport.pages._template import filled
from tlexport.reports import GraphStep, ParityReport

WIDTH, HEIGHT, MARGIN = 720, 240, 44
LOWEST = 1e-2
"""Ratios below are drawn at the foot of the chart."""


def page(report: ParityReport) -> str:
    """One self-contained HTML page: verdict, causes, the graph's errors as SVG, every check."""
    steps = report.walk.steps if report.walk is not None else ()
    return filled(
        "parity.html.j2",
        report=report,
        chart=_chart(steps, report.factor),
        first=report.walk.first if report.walk is not None else None,
    )


def _chart(steps: tuple[GraphStep, ...], factor: float | None) -> dict[str, object] | None:
    """The error of each value in floors, along the graph: points in pixels, ticks, the limit."""
    ratios = [step.ratio for step in steps]
    finite = [ratio for ratio in ratios if ratio is not None]
    if len(finite) < 2:
        return None
    top = math.ceil(math.log10(max(*finite, (factor or 1.0) * 2)))
    foot = math.floor(math.log10(LOWEST))

    def height(ratio: float | None) -> float:
        place = top if ratio is None else math.log10(max(ratio, LOWEST))
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (place - foot) / (top - foot), 1)

    across = (WIDTH - 2 * MARGIN) / (len(steps) - 1)
    points = [
        {"x": round(MARGIN + across * n, 1), "y": height(step.ratio), "step": step}
        for n, step in enumerate(steps)
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": MARGIN,
        "right": WIDTH - MARGIN,
        "points": points,
        "line": " ".join(f"{point['x']},{point['y']}" for point in points),
        "ticks": [
            {"y": height(10.0**power), "label": f"1e{power}"} for power in range(foot, top + 1)
        ],
        "limit": None if factor is None else {"y": height(factor), "label": f"{factor:g}x"},
    }
