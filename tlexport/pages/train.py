"""How an adaptation went, as a page for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlexport.pages._template import filled
from tlexport.reports import AdaptReport, TrainReport

WIDTH, HEIGHT, MARGIN = 720, 240, 44


def page(report: TrainReport) -> str:
    """One self-contained HTML page: curves of loss and accuracy as SVG, every epoch and trial."""
    assert report.adapted is not None
    return filled(
        "train.html.j2",
        report=report,
        adapted=report.adapted,
        charts=[_losses(report.adapted), _right(report)],
    )


def _losses(adapted: AdaptReport) -> dict[str, Any]:
    return _chart(
        "loss",
        {
            "training": [(e.epoch, e.loss) for e in adapted.epochs if e.loss is not None],
            "validation": [
                (0, adapted.frozen_val_loss),
                *((e.epoch, e.val_loss) for e in adapted.epochs if e.val_loss is not None),
            ],
        },
        adapted.best_epoch,
    )


def _right(report: TrainReport) -> dict[str, Any]:
    assert report.adapted is not None
    adapted = report.adapted
    points = [(epoch.epoch, epoch.val_accuracy) for epoch in adapted.epochs]
    return _chart(
        "validation accuracy",
        {"validation": [(0, adapted.frozen_val_accuracy), *points]},
        adapted.best_epoch,
    )


def _chart(name: str, lines: dict[str, Sequence[tuple[int, float]]], best: int) -> dict[str, Any]:
    """Lines over epochs in pixels."""
    values = [y for line in lines.values() for _, y in line]
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or 0.05
    low, high = low - room, high + room
    last = max([x for line in lines.values() for x, _ in line] + [1])

    def across(epoch: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * epoch / last, 1)

    def height(value: float) -> float:
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low), 1)

    drawn = [
        {
            "kind": kind,
            "points": " ".join(f"{across(x)},{height(y)}" for x, y in line),
        }
        for kind, line in lines.items()
    ]
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    step = max(1, last // 10)
    return {
        "name": name,
        "width": WIDTH,
        "height": HEIGHT,
        "left": MARGIN,
        "right": WIDTH - MARGIN,
        "foot": HEIGHT - MARGIN,
        "lines": drawn,
        "best": across(best),
        "rows": [{"y": height(tick), "label": f"{tick:.3g}"} for tick in ticks],
        "columns": [{"x": across(x), "label": str(x)} for x in range(0, last + 1, step)],
    }
