from __future__ import annotations

from pathlib import Path
from types import ModuleType

import digits
import numpy as np
import pytest
import torch
from PIL import Image

from tlexport.errors import OptionError
from tlexport.tasks import (
    audio_classification,
    image_classification,
    tensors,
    text_classification,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures() -> dict[str, torch.Tensor]:
    noise = np.random.default_rng(0).integers(0, 256, (6, 12, 20, 3), dtype=np.uint8)
    slope = np.linspace(0, 255, 40).astype(np.uint8)[None, None, :, None]
    plain = np.broadcast_to(slope, (2, 24, 40, 3))
    images = np.concatenate([noise.repeat(2, 1).repeat(2, 2), plain])
    return {"images": torch.from_numpy(images)}


def clips(*, masked: bool) -> dict[str, torch.Tensor]:
    samples = torch.sin(torch.arange(8000) * 0.05).repeat(4, 1) * torch.tensor(
        [[0.05], [0.5], [0.9], [1.0]]
    )
    mask = torch.arange(8000) < torch.tensor([[8000], [6001], [1000], [400]])
    made = {"samples": torch.where(mask, samples, 0.0)}
    return {**made, "attention_mask": mask} if masked else made


CASES = {
    "images": (image_classification, pictures, "images"),
    "masked clips": (audio_classification, lambda: clips(masked=True), "samples"),
    "clips": (audio_classification, lambda: clips(masked=False), "samples"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_makes_the_same_and_zero_changes_nothing(case: str) -> None:
    task, make, name = CASES[case]
    inputs = make()
    state = torch.get_rng_state()
    first, again, other = (task.augment(inputs, 0.7, generator(s))[name] for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state), "the caller's own random state is used"
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.equal(a, b) for a, b in zip(first, inputs[name], strict=True))
    same = task.augment(inputs, 0.0, generator())
    assert all(torch.equal(same[key], inputs[key]) for key in inputs)
    assert all(torch.equal(inputs[key], make()[key]) for key in inputs), "inputs are changed"


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_what_comes_is_legal(case: str, strength: float) -> None:
    task, make, name = CASES[case]
    for seed in range(5):
        inputs = make()
        made = task.augment(inputs, strength, generator(seed))
        assert made.keys() == inputs.keys()
        for key, tensor in inputs.items():
            assert (made[key].shape, made[key].dtype) == (tensor.shape, tensor.dtype)
        if name == "samples":
            assert made[name].abs().max() <= 1
            padding = ~clips(masked=True)["attention_mask"]
            assert not made[name][padding].any()
            assert torch.isfinite(made[name]).all()


@pytest.mark.parametrize("case", CASES)
def test_a_weaker_change_is_smaller(case: str) -> None:
    task, make, name = CASES[case]
    inputs = make()
    far = []
    for strength in (0.02, 0.3, 1.0):
        made = [task.augment(inputs, strength, generator(seed))[name] for seed in range(8)]
        far.append(float(np.mean([(m.double() - inputs[name]).abs().mean() for m in made])))
    assert far[0] < far[1] < far[2]
    assert far[0] < 0.3 * far[2]


def test_gaps_lie_within_the_clip_and_loud_clips_are_not_cut_off() -> None:
    inputs = clips(masked=True)
    made = audio_classification.augment(inputs, 1.0, generator())["samples"]
    for row in range(4):
        real = made[row][inputs["attention_mask"][row]]
        silent = float((real == 0).float().mean())
        assert 0 < silent <= 0.4 + 0.02
        assert float((real.abs() == 1).float().mean()) < 0.2


def test_silence_stays_silence() -> None:
    inputs = {"samples": torch.zeros(2, 1000)}
    assert not audio_classification.augment(inputs, 1.0, generator())["samples"].any()


def test_real_digits_keep_their_look(tmp_path: Path) -> None:
    files = sorted(digits.write(tmp_path, per_class=8).rglob("3/*.png"))
    images = torch.from_numpy(
        np.stack([np.asarray(Image.open(file).convert("RGB").resize((32, 32))) for file in files])
    )
    made = image_classification.augment({"images": images}, 0.3, generator())["images"]
    alike = np.corrcoef(images.double().mean(0).flatten(), made.double().mean(0).flatten())[0, 1]
    assert alike > 0.9


@pytest.mark.parametrize("task", [text_classification, tensors])
def test_a_task_without_a_change_refuses(task: ModuleType) -> None:
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    assert task.augment(inputs, 0.0, generator()) is inputs
    with pytest.raises(OptionError, match="--augment"):
        task.augment(inputs, 0.1, generator())
