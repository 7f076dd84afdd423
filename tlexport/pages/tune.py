"""What was tried, as a page: throughput against latency."""

from __future__ import annotations

import math
from typing import Any

from tlexport.options import read_slo
from tlexport.pages._template import decades, filled
from tlexport.reports import LoadPoint, TuneReport, TuneTrial

WIDTH, HEIGHT, MARGIN = 720, 380, 56


def page(report: TuneReport) -> str:
    """One self-contained HTML page: the verdict, every load as a point, every setting as a row."""
    ordered = sorted(report.trials, key=_reached, reverse=True)
    shown = {"report": report, "chart": _chart(report), "trials": ordered}
    return filled("tune.html.j2", settings=told, number=number, **shown)


def told(trial: TuneTrial) -> str:
    """A setting in one line."""
    settings = trial.settings
    text = f"{settings.instances} x {settings.threads} threads, batch {settings.max_batch}"
    if settings.max_batch > 1:
        text += f", wait {settings.queue_delay_us / 1000:g} ms"
    if settings.preferred:
        text += f", preferred {' and '.join(map(str, settings.preferred))}"
    return text


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _reached(trial: TuneTrial) -> float:
    return trial.best.items_per_s if trial.best is not None else 0.0


def _chart(report: TuneReport) -> dict[str, Any]:
    """Every load in pixels: latency across (logarithmic), throughput upwards."""
    points = [point for trial in report.trials for point in trial.points]
    limit_ms = read_slo(report.slo).latency_ms
    low = min(limit_ms, *(point.quantile_ms for point in points)) * 0.8
    high = max(limit_ms, *(point.quantile_ms for point in points)) * 1.25
    top = 1.1 * max(point.items_per_s for point in points)

    def across(latency_ms: float) -> float:
        share = math.log(latency_ms / low) / math.log(high / low)
        return round(MARGIN + (WIDTH - 2 * MARGIN) * share, 1)

    def height(items_per_s: float) -> float:
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * items_per_s / top, 1)

    def line(trial: TuneTrial) -> dict[str, Any]:
        dots = [_dot(p, across(p.quantile_ms), height(p.items_per_s)) for p in trial.points]
        kind = "plain"
        if trial.settings == report.default.settings:
            kind = "default"
        if trial.settings == report.best.settings:
            kind = "best"
        path = " ".join(f"{dot['x']},{dot['y']}" for dot in dots)
        return {"name": told(trial), "kind": kind, "dots": dots, "path": path}

    order = {"plain": 0, "default": 1, "best": 2}
    lines = sorted((line(trial) for trial in report.trials), key=lambda each: order[each["kind"]])
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": MARGIN,
        "right": WIDTH - MARGIN,
        "bottom": HEIGHT - MARGIN,
        "top": MARGIN,
        "lines": lines,
        "limit": across(limit_ms),
        "columns": [{"x": across(each), "label": f"{each:g}"} for each in decades(low, high)],
        "rows": [{"y": height(top * n / 4), "label": number(top * n / 4)} for n in range(5)],
    }


def _dot(point: LoadPoint, x: float, y: float) -> dict[str, Any]:
    text = f"{point.concurrency} in flight: {point.items_per_s:.3g}/s, {point.quantile_ms:.3g} ms"
    return {"x": x, "y": y, "told": text}
