from __future__ import annotations

import io
import sys

import onnx
import pytest
import small_networks
import torch

from tlexport.errors import MissingDependency, OptionError
from tlexport.training import lora
from tlexport.training.blocks import blocks
from tlexport.training.groups import Rates, groups

pytest.importorskip("peft")

ADAPTED = [
    *small_networks.TEXTS,
    *small_networks.CLIPS,
    "timm/vit_tiny_patch16_224",
    "torchvision/vit_b_32",
]


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_train_and_merge_without_a_trace(name: str) -> None:
    extractor, probe = small_networks.of(name)
    modules = [(path, type(m)) for path, m in extractor.named_modules()]
    state = {path: each.clone() for path, each in extractor.state_dict().items()}
    with torch.no_grad():
        at_first = extractor(*probe)
    adapted = lora.wrap(extractor, probe, rank=2, seed=0)
    assert adapted
    with torch.no_grad():
        torch.testing.assert_close(extractor(*probe), at_first)
    trained = {path: each for path, each in extractor.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * len(adapted)
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a zero half passes no gradient to the other
        for path, each in trained.items():
            if "lora_B" in path:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.05)
    answer = extractor(*probe)
    (answer * torch.randn(answer.shape, generator=generator)).sum().backward()
    idle = [path for path, each in trained.items() if each.grad is None]
    assert not idle, "adapters past which the weights are read"
    optimiser.step()
    with torch.no_grad():
        learnt = extractor(*probe)
        lora.merge(extractor)
        merged = extractor(*probe)
    assert not torch.allclose(learnt, at_first, rtol=1e-3)
    torch.testing.assert_close(merged, learnt, rtol=1e-3, atol=1e-4)
    assert [(path, type(m)) for path, m in extractor.named_modules()] == modules
    after = extractor.state_dict()
    assert list(after) == list(state)
    changed = {path for path in state if not torch.equal(state[path], after[path])}
    assert changed == {f"{layer}.weight" for layer in adapted}


def exported(extractor: torch.nn.Module, probe: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    program = torch.onnx.export(extractor.eval(), probe, dynamo=True, verbose=False)
    assert program is not None
    stream = io.BytesIO()
    program.save(stream)
    return onnx.load_from_string(stream.getvalue())


def test_the_exported_graph_is_that_of_the_unadapted_network() -> None:
    extractor, probe = small_networks.of("bert")
    before = exported(extractor, probe)
    lora.wrap(extractor, probe, rank=2, seed=0)
    lora.merge(extractor)
    after = exported(extractor, probe)
    assert [(n.op_type, n.name) for n in after.graph.node] == [
        (n.op_type, n.name) for n in before.graph.node
    ]
    assert [i.name for i in after.graph.initializer] == [i.name for i in before.graph.initializer]


def test_the_same_seed_starts_the_same_adapters_and_leaves_the_callers_state_alone() -> None:
    state = torch.get_rng_state()
    starts = []
    for seed in (0, 0, 1):
        extractor, probe = small_networks.of("bert")
        torch.set_rng_state(state)
        lora.wrap(extractor, probe, rank=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        starts.append([p.clone() for p in extractor.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))


def test_adapters_have_the_heads_rate() -> None:
    extractor, probe = small_networks.of("bert")
    found = blocks(extractor, probe)
    lora.wrap(extractor, probe, rank=2, seed=0)
    made = groups(
        torch.nn.Linear(8, 2), extractor, found, Rates(learning_rate=0.1, weight_decay=0, decay=0.5)
    )
    assert {group["lr"] for group in made} == {0.1}
    trained = sum(p.requires_grad for p in extractor.parameters())
    assert sum(len(group["params"]) for group in made) == trained + 2


def test_a_backbone_without_linear_layers_that_repeat_is_refused() -> None:
    extractor, probe = small_networks.of("torchvision/resnet18")
    with pytest.raises(OptionError, match="transformer"):
        lora.wrap(extractor, probe, rank=2, seed=0)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    extractor, probe = small_networks.of("bert")
    with pytest.raises(MissingDependency, match=r"tlexport\[lora\]"):
        lora.wrap(extractor, probe, rank=2, seed=0)
