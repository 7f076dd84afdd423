from __future__ import annotations

import pytest
import small_networks
import torch

from tlexport.training.blocks import blocks, choose
from tlexport.training.norms import Pace, freeze, hold

PACE = Pace(steps=20)


def statistics(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in module.named_buffers() if "running" in name}


@pytest.mark.parametrize(("steps", "momentum"), [(8, 0.1), (20, 0.1), (500, 0.02)])
def test_frozen_statistics_stay_and_trained_ones_move(steps: int, momentum: float) -> None:
    extractor, probe = small_networks.of("timm/tf_efficientnet_lite0")
    trained = choose(blocks(extractor, probe), "last-2")
    freeze(extractor, trained)
    extractor.train()
    hold(extractor, trained, Pace(steps=steps, fresh=True))
    before = statistics(extractor)
    extractor(*probe)
    moved = {n for n, each in statistics(extractor).items() if not torch.equal(each, before[n])}
    prefixes = tuple(f"{name}." for block in trained for name in block.modules)
    assert moved == {name for name in before if name.startswith(prefixes)}
    assert moved
    momenta = {m.momentum for m in extractor.modules() if hasattr(m, "running_mean") and m.training}
    assert momenta == {momentum}


@pytest.mark.parametrize("fresh", [False, True])
def test_pretrained_statistics_are_kept_and_their_scales_train(fresh: bool) -> None:
    extractor, probe = small_networks.of("torchvision/resnet18")
    trained = blocks(extractor, probe)
    freeze(extractor, trained)
    hold(extractor, trained, Pace(steps=20, fresh=fresh))
    before = statistics(extractor)
    extractor(*probe).sum().backward()
    same = all(torch.equal(each, before[name]) for name, each in statistics(extractor).items())
    assert same is not fresh
    assert extractor[1].bn1.weight.grad is not None, "its scale trains"


def test_dropout_is_off_where_nothing_trains() -> None:
    extractor, probe = small_networks.of("bert")
    found = blocks(extractor, probe)
    extractor.train()
    hold(extractor, (), PACE)
    assert torch.equal(extractor(*probe), extractor(*probe))
    hold(extractor, choose(found, "last-1"), PACE)
    assert not torch.equal(extractor(*probe), extractor(*probe))
    assert not extractor.get_submodule(found[0].name).training
