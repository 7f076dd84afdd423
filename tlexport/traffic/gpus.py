"""What NVML tells of the cards while they are measured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

EVERY_S = 0.25
"""How often a card is asked: a query takes some 50 us and no time on the card."""
MEANS = ("power_w", "utilisation_percent", "sm_clock_mhz", "memory_clock_mhz")


class Watch:
    """Samples of each card, taken while the block runs; empty where there is none."""

    def __init__(self) -> None:
        self._facts: list[dict[str, Any]] = []
        self._samples: list[list[dict[str, float]]] = []

    def told(self) -> tuple[Mapping[str, Any], ...]:
        """Per card: name, driver, limits; means of power, utilisation, clocks; most memory."""
        found = []
        for facts, samples in zip(self._facts, self._samples, strict=True):
            means = {
                name: round(float(np.mean([sample[name] for sample in samples])), 1)
                for name in MEANS
                if samples and all(name in sample for sample in samples)
            }
            most = max((sample["memory_mb"] for sample in samples), default=None)
            found.append({**facts, **means, "most_memory_mb": most, "samples": len(samples)})
        return tuple(found)

    def add(self, facts: dict[str, Any]) -> list[dict[str, float]]:
        """A card; the list is where its samples go."""
        self._facts.append(facts)
        self._samples.append([])
        return self._samples[-1]


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Look at every card while the block runs, from a thread of its own."""
    watch, over = Watch(), threading.Event()
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no library, no driver, or no card: three kinds of there being nothing
        yield watch
        return
    try:
        cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        places = [(card, watch.add(_facts(nvml, card))) for card in cards]

        def look() -> None:
            while not over.wait(EVERY_S):
                for card, samples in places:
                    samples.append(_sample(nvml, card))

        thread = threading.Thread(target=look, name="nvml", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            over.set()
            thread.join()
    finally:
        nvml.nvmlShutdown()


def _facts(nvml: Any, card: Any) -> dict[str, Any]:
    """What does not change: name, driver, memory, power limit, the highest clock."""
    asked = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(card)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "memory_mb": lambda: nvml.nvmlDeviceGetMemoryInfo(card).total / 2**20,
        "power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementLimit(card) / 1e3,
        "highest_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM),
    }
    return _answered(nvml, asked)


def _sample(nvml: Any, card: Any) -> dict[str, float]:
    asked = {
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        "utilisation_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(card).gpu),
        "sm_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
        "memory_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)),
        "memory_mb": lambda: round(nvml.nvmlDeviceGetMemoryInfo(card).used / 2**20, 1),
    }
    return {"memory_mb": 0.0, **_answered(nvml, asked)}


def _answered(nvml: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What the card answers; cards that lack a sensor say so, and it is left out."""
    found = {}
    for name, ask in asked.items():
        with contextlib.suppress(nvml.NVMLError):
            found[name] = ask()
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
