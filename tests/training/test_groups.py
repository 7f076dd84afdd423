from __future__ import annotations

import pytest
import small_networks
import torch

from tlexport.training import norms
from tlexport.training.blocks import blocks, choose
from tlexport.training.groups import Rates, groups

RATES = Rates(learning_rate=0.01, weight_decay=0.1, decay=0.5)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/vit_tiny_patch16_224", "bert"])
def test_rates_fall_from_head_to_input_and_vectors_are_not_decayed(name: str) -> None:
    extractor, _ = small_networks.of(name)
    head = torch.nn.Linear(8, 2)
    found = blocks(extractor)
    norms.freeze(extractor, found)
    made = groups(head, extractor, found, RATES)
    rate_of = {id(p): group["lr"] for group in made for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in made for p in group["params"]}
    everything = [*head.parameters(), *extractor.parameters()]
    assert sorted(rate_of) == sorted(map(id, everything))
    assert sum(len(group["params"]) for group in made) == len(everything)
    assert rate_of[id(head.weight)] == 0.01
    assert rate_of[id(extractor.get_parameter(found[-1].parameters[0]))] == 0.005
    first = extractor.get_parameter(found[0].parameters[0])
    assert rate_of[id(first)] == pytest.approx(0.01 * 0.5 ** len(found))
    for path, each in extractor.named_parameters():
        if each.ndim < 2 or "pos" in path or "cls" in path:
            assert decay_of[id(each)] == 0, path
        else:
            assert decay_of[id(each)] == 0.1, path
    torch.optim.AdamW(made)


def test_what_is_frozen_is_in_no_group() -> None:
    extractor, _ = small_networks.of("bert")
    found = blocks(extractor)
    norms.freeze(extractor, choose(found, "last-1"))
    made = groups(torch.nn.Linear(8, 2), extractor, found, RATES)
    names = {group["name"].removesuffix(", undecayed") for group in made}
    assert names == {"head", found[-1].name}
