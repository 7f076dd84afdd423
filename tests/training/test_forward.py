"""Another runtime computes features only where it is proven equal, quicker, and worth its cost."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from tlexport.errors import ExportError
from tlexport.training.forward import ORIGINAL, Quickest, eager


class Mean(torch.nn.Module):
    """uint8 [batch, height, width, 3] -> float32 [batch, 3]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(1, 2))


def in_numpy(inputs):
    return inputs["images"].astype(np.float32).mean((1, 2))


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return [{"images": rng.integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)} for _ in range(6)]


def slowed(ask, seconds):
    def slow(inputs):
        time.sleep(seconds)
        return ask(inputs)

    return slow


def asked(quickest, batches):
    values = [quickest(b, len(batches) - n - 1, lambda: batches[-1]) for n, b in enumerate(batches)]
    return np.concatenate(values)


def test_an_equal_and_quicker_runtime_takes_over(batches):
    original, calls = eager(Mean()), []

    def counting(inputs):
        calls.append(len(inputs["images"]))
        return in_numpy(inputs)

    quickest = Quickest(slowed(original, 0.05), lambda inputs: ("numpy", counting), 0.0)
    values = asked(quickest, batches)
    assert (quickest.used, quickest.notes) == ("numpy", [])
    assert len(calls) == 3 + 3, "warmed, compared on two batches, and the last three batches"
    assert np.allclose(values, np.concatenate([original(b) for b in batches]), rtol=1e-5)


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
@pytest.mark.parametrize("where", [0, -1])
def test_a_runtime_that_answers_otherwise_is_left_and_the_user_told(batches, wrong, where):
    original = eager(Mean())
    off = batches[2 if where == 0 else -1]["images"]

    def other(inputs):
        return in_numpy(inputs) * (1 + wrong * (inputs["images"] is off))

    quickest = Quickest(slowed(original, 0.02), lambda inputs: ("numpy", other), 0.0)
    values = asked(quickest, batches)
    assert quickest.used == ORIGINAL
    assert "those of numpy differ by" in quickest.notes[0]
    assert np.array_equal(values, np.concatenate([original(b) for b in batches]))


def test_a_slower_runtime_is_left_without_a_word(batches):
    quickest = Quickest(eager(Mean()), lambda inputs: ("numpy", slowed(in_numpy, 0.05)), 0.0)
    asked(quickest, batches)
    assert (quickest.used, quickest.notes) == (ORIGINAL, [])


def test_a_network_that_cannot_be_exported_is_computed_in_pytorch(batches):
    def fails(inputs):
        raise ExportError("a network that can be traced", got="a branch", fix="see PyTorch")

    quickest = Quickest(eager(Mean()), fails, 0.0)
    asked(quickest, batches)
    assert quickest.used == ORIGINAL
    assert "a network that can be traced" in quickest.notes[0]


def test_nothing_is_tried_for_little_work(batches):
    quickest = Quickest(eager(Mean()), lambda inputs: pytest.fail("tried"), 30.0)
    asked(quickest, batches)
    assert quickest.used == ORIGINAL
