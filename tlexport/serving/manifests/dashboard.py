"""What is watched of a Triton server; Grafana's page of it."""

from __future__ import annotations

from typing import Any

import msgspec

SUCCESS, COUNT = "nv_inference_request_success", "nv_inference_count"
EXECUTIONS, FAILURE = "nv_inference_exec_count", "nv_inference_request_failure"
REQUEST_US, QUEUE_US = "nv_inference_request_duration_us", "nv_inference_queue_duration_us"
SUMMARY_US = "nv_inference_request_summary_us"
WINDOW = "[1m]"

METRICS = {"success": SUCCESS, "queue_us": QUEUE_US}
"""Names that the templates use."""


def _mean_ms(duration: str) -> str:
    """Mean milliseconds per request of a counter of microseconds."""
    rates = [f"sum by (model) (rate({each}{WINDOW}))" for each in (duration, SUCCESS)]
    return f"{rates[0]} / {rates[1]} / 1000"


PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Latency by quantile",
        "ms",
        ((f"max by (model, quantile) ({SUMMARY_US} / 1000)", "{{model}} p{{quantile}}"),),
    ),
    ("Latency, mean", "ms", ((_mean_ms(REQUEST_US), "{{model}}"),)),
    ("Queue, mean", "ms", ((_mean_ms(QUEUE_US), "{{model}}"),)),
    (
        "Where the time goes",
        "ms",
        tuple(
            (_mean_ms(f"nv_inference_{part}_duration_us"), f"{{{{model}}}} {part}")
            for part in PARTS
        ),
    ),
    ("Requests", "reqps", ((f"sum by (model) (rate({SUCCESS}{WINDOW}))", "{{model}}"),)),
    (
        "Batch size, mean",
        "short",
        (
            (
                f"sum by (model) (rate({COUNT}{WINDOW})) "
                f"/ sum by (model) (rate({EXECUTIONS}{WINDOW}))",
                "{{model}}",
            ),
        ),
    ),
    (
        "Failures",
        "reqps",
        ((f"sum by (model, reason) (rate({FAILURE}{WINDOW}))", "{{model}} {{reason}}"),),
    ),
    (
        "Waiting requests",
        "short",
        (("sum by (model) (nv_inference_pending_request_count)", "{{model}}"),),
    ),
    (
        "CPU of the node",
        "percentunit",
        (("max by (instance) (nv_cpu_utilization)", "{{instance}}"),),
    ),
)
"""Title, unit, and (query in PromQL, legend) of each."""

ACROSS, HEIGHT = 2, 8


def text(name: str) -> str:
    """The dashboard as Grafana reads it."""
    source = {"type": "prometheus", "uid": "prometheus"}
    panels: list[dict[str, Any]] = []
    for place, (title, unit, queries) in enumerate(PANELS):
        panels.append(
            {
                "id": place + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {
                    "x": place % ACROSS * 12,
                    "y": place // ACROSS * HEIGHT,
                    "w": 24 // ACROSS,
                    "h": HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {
                        "refId": chr(ord("A") + number),
                        "datasource": source,
                        "expr": query,
                        "legendFormat": legend,
                    }
                    for number, (query, legend) in enumerate(queries)
                ],
            }
        )
    page = {
        "uid": f"tlexport-{name}",
        "title": f"Triton: {name}",
        "tags": ["triton"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": panels,
    }
    return msgspec.json.format(msgspec.json.encode(page)).decode() + "\n"
