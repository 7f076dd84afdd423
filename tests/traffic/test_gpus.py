"""Cards as NVML tells them; this library stands in for one, where there is no card."""

import sys
import time
from types import SimpleNamespace

import pytest

from tlexport.traffic import gpus


class Nvml:
    """Two cards, of which the second has no power sensor."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, place):
        return place

    def nvmlDeviceGetName(self, card):
        return b"a card" if card == 0 else "another"

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetMemoryInfo(self, card):
        return SimpleNamespace(total=80 * 2**30, used=3 * 2**30)

    def nvmlDeviceGetPowerManagementLimit(self, card):
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, card, kind):
        return 1980

    def nvmlDeviceGetPowerUsage(self, card):
        if card == 1:
            raise self.NVMLError("not supported")
        return 350_500

    def nvmlDeviceGetUtilizationRates(self, card):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetClockInfo(self, card, kind):
        return 1755 if kind == self.NVML_CLOCK_SM else 2619


def test_samples_are_taken_while_it_runs(monkeypatch):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpus, "EVERY_S", 0.005)
    with gpus.watched() as watch:
        time.sleep(0.1)
    first, second = watch.told()
    assert (first["name"], second["name"]) == ("a card", "another")
    assert first["power_w"] == 350.5
    assert "power_w" not in second
    for card in (first, second):
        assert card["utilisation_percent"] == 97
        assert card["sm_clock_mhz"] == 1755
        assert card["most_memory_mb"] == 3 * 1024
        assert card["samples"] >= 2
        assert card["power_limit_w"] == 700
    assert nvml.open == 0


def test_without_a_card_nothing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpus.watched() as watch:
        pass
    assert watch.told() == ()


@pytest.mark.gpu
def test_a_real_card():
    with gpus.watched() as watch:
        time.sleep(1.0)
    (card, *_) = watch.told()
    assert card["name"]
    assert card["samples"] >= 2
    assert card["most_memory_mb"] >= 0
