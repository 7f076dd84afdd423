"""Low-rank adapters: put on a backbone, and merged into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from tlexport.errors import MissingDependency, OptionError
from tlexport.training.blocks import blocks

SCALE = 2
"""Alpha over rank: the adapter's answer is multiplied by it."""


def wrap(
    extractor: torch.nn.Module, probe: Sequence[torch.Tensor], *, rank: int, seed: int
) -> tuple[str, ...]:
    """Put adapters on the linear layers of the layers that repeat, and freeze all else.

    Hu et al., "LoRA", 2021; on all linear layers and not on queries and values alone, as Dettmers
    et al., "QLoRA", 2023, found to matter. At first an adapter answers zero: the network is what
    it was. `probe` are inputs of the extractor: a layer whose weights are read past it (torch's
    fused attention does) would never see its adapter, so it has none. The extractor is changed in
    place; the names of the adapted layers come back.

    Raises:
        MissingDependency: peft is not installed.
        OptionError: the backbone has no such layers.
    """
    peft = _peft()
    names = _called_linears(extractor, probe)
    if not names:
        raise OptionError(
            "a backbone with linear layers that repeat (a transformer) for --lora",
            got="one without",
            fix="leave --lora out and pass --unfreeze last-N or all",
        )
    transposed = {type(extractor.get_submodule(name)).__name__ for name in names} == {"Conv1D"}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        fan_in_fan_out=transposed,
        target_modules="|".join(map(re.escape, names)),  # as a list they would match as endings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, extractor)
    adapters = {id(each) for layer in _layers(extractor).values() for each in _adapter(layer)}
    for parameter in extractor.parameters():
        parameter.requires_grad_(id(parameter) in adapters)
    return names


def merge(extractor: torch.nn.Module) -> None:
    """Add each adapter to its layer's weights and take it off: modules and names are as before."""
    for name, layer in _layers(extractor).items():
        layer.merge(safe_merge=True)
        extractor.set_submodule(name, layer.get_base_layer())
    for module in extractor.modules():
        vars(module).pop("peft_config", None)


def hold() -> None:
    """Refuse before anything is computed what would be refused later.

    Raises:
        MissingDependency: peft is not installed.
    """
    _peft()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependency(
            "peft, which makes low-rank adapters",
            got=str(error),
            fix="install it: pip install 'tlexport[lora]'",
        ) from error
    return peft


def _layers(extractor: torch.nn.Module) -> dict[str, Any]:
    """Adapted layers by name."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in extractor.named_modules() if isinstance(m, LoraLayer)}


def _adapter(layer: Any) -> list[torch.nn.Parameter]:
    return [
        *layer.lora_A.parameters(),
        *layer.lora_B.parameters(),
    ]


def _called_linears(extractor: torch.nn.Module, probe: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Linear layers within units of the network that a forward pass calls, in its order."""
    called: dict[str, None] = {}
    hooks = []
    repeated = tuple(
        f"{name}." for block in blocks(extractor, probe) if block.repeats for name in block.modules
    )
    for name, module in extractor.named_modules():
        # Conv1D is how GPT-2 calls a linear layer.
        if name.startswith(repeated) and type(module).__name__ in ("Linear", "Conv1D"):

            def note(*_: object, name: str = name) -> None:
                called[name] = None

            hooks.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            extractor(*probe)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(called)
