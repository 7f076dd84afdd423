from __future__ import annotations

import pytest
import small_networks
import torch

from tlexport.errors import OptionError
from tlexport.training.blocks import Block, blocks, choose


@pytest.mark.parametrize("name", sorted(small_networks.EXPECTED))
def test_every_parameter_of_any_backbone_is_in_one_block(name: str) -> None:
    extractor, probe = small_networks.of(name)
    found = blocks(extractor, probe)
    owned = [each for block in found for each in block.parameters]
    assert sorted(owned) == sorted(each for each, _ in extractor.named_parameters())
    below = [m for block in found for m in block.modules]
    assert not [a for a in below for b in below if a.startswith(f"{b}.")], "blocks overlap"
    assert len(found) >= 2
    expected = small_networks.EXPECTED[name]
    if expected is not None:
        count, first, last = expected
        assert len(found) == count, [block.name for block in found]
        assert first in (None, found[0].name)
        assert last in (None, found[-1].name)
    else:
        assert 8 <= len(found) <= 70


@pytest.mark.parametrize("name", ["torchvision/resnet18", "bert", "whisper", "gpt2"])
def test_what_the_last_block_changes_leaves_the_earlier_answers_alone(name: str) -> None:
    extractor, probe = small_networks.of(name)
    found = blocks(extractor, probe)
    seen: list[torch.Tensor] = []

    def keep(_: object, __: object, answer: object) -> None:
        seen.append((answer[0] if isinstance(answer, tuple) else answer).clone())

    extractor.get_submodule(found[-2].name).register_forward_hook(keep)
    with torch.no_grad():
        before = extractor(*probe)
        for path in found[-1].parameters:
            extractor.get_parameter(path).mul_(1.5)
        after = extractor(*probe)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(before, after)


def test_the_order_is_that_of_execution_where_a_probe_is_given() -> None:
    class Backward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(4)
            self.last = torch.nn.Linear(4, 4)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                values = layer(values)
            return self.norm(self.last(values))

    found = blocks(Backward(), (torch.zeros(1, 4),))
    assert [block.name for block in found] == ["layers.0", "layers.1", "last"]
    assert found[-1].parameters[-1] == "norm.bias"


def test_last_n_counts_from_the_head() -> None:
    found = blocks(small_networks.text("bert")[0])
    assert choose(found, "head") == ()
    assert choose(found, "all") == found
    assert [block.name for block in choose(found, "last-1")] == ["backbone.model.encoder.layer.1"]
    assert choose(found, "last-3") == found


def test_more_blocks_than_there_are_are_refused() -> None:
    found = blocks(small_networks.text("bert")[0])
    with pytest.raises(OptionError) as told:
        choose(found, "last-4")
    assert "3 blocks" in str(told.value)


def test_a_block_is_a_value() -> None:
    with pytest.raises(AttributeError):
        Block(name="a", modules=(), parameters=(), repeats=False).name = "b"
