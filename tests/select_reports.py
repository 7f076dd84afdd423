"""Reports of comparisons, made up."""

from __future__ import annotations

from tlexport.environment import environment
from tlexport.reports import Interval, LeftOut, SelectReport, SelectRow


def row(name: str, share: float, latency_ms: float, **changes) -> SelectRow:
    values = {
        "backbone": name,
        "weights": "random",
        "accuracy": Interval(value=share, low=share - 0.03, high=min(1.0, share + 0.03)),
        "behind": Interval(value=share - 0.9, low=share - 0.95, high=share - 0.85),
        "different": share < 0.85,
        "likely_best": 0.5,
        "p50_ms": Interval(value=latency_ms, low=latency_ms * 0.9, high=latency_ms * 1.1),
        "p90_ms": None,
        "size_bytes": round(latency_ms * 4e6),
        "parameters": round(latency_ms * 1e6),
        "width": 512,
        "front_latency": True,
        "front_size": True,
        "penalty": 1.0,
        "loss": 0.4,
        "features_s": 1.0,
        "features_reused": 0,
        "export_s": 1.0,
        "export_reused": False,
        "notes": (),
    }
    return SelectRow(**(values | changes))


def report(*rows: SelectRow, **changes) -> SelectReport:
    values = {
        "data": "my photos",
        "task": "image-classification",
        "labels": ("cat", "dog"),
        "examples": 200,
        "available": 1000,
        "folds": 5,
        "runtime": "ort@cpu",
        "threads": 2,
        "rounds": 10,
        "round_s": 0.15,
        "rows": rows,
        "left_out": (LeftOut(backbone="a/gone", reason="no <hub> & no file"),),
        "rule": "the most accurate",
        "chosen": rows[0].backbone,
        "nearest": "",
        "command": "tlexport train 'my photos' -o my_photos.bundle",
        "skipped": (),
        "notes": (),
        "seconds": {"features": 2.0, "all": 5.0},
        "seed": 0,
        "environment": environment(),
    }
    return SelectReport(**(values | changes))
