"""A backbone of the right modality, built and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import safetensors.torch
import torch

from tlexport import plugins
from tlexport.backbones import Pretrained, _weights
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError
from tlexport.options import TrainOptions

REASON = 200
"""Characters told of torch's reason not to load weights: it lists every tensor."""


class Frozen(NamedTuple):
    """A backbone with its weights, told where they came from; `record` builds it again."""

    pretrained: Pretrained
    origin: str
    record: dict[str, Any]


def load(options: TrainOptions, modality: str) -> Frozen:
    """The backbone SOURCE/NAME with its weights, its classifier still on.

    Raises:
        OptionError: there is no such backbone, it is for other inputs, or its weights cannot be
            had.
        DataError: the weights are of another network or not safe to load.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        source, name, pretrained = build(options.backbone)
    if pretrained.modality != modality:
        raise OptionError(
            f"a backbone for {modality}, for --task {options.task}",
            got=f"{options.backbone}, which is for {pretrained.modality}",
            fix=f"pass --task {pretrained.modality}-classification, or another --backbone",
        )
    origin = _weights.load(pretrained, options.weights, lambda: source.fetch(name))
    record = {"backbone": options.backbone, "recipe": pretrained.recipe}
    return Frozen(pretrained, origin, record)


def build(backbone: str, recipe: dict[str, Any] | None = None) -> tuple[Any, str, Pretrained]:
    """The backbone's source, its name there, and the network with start weights.

    Raises:
        OptionError: the text is not SOURCE/NAME, or there is no such backbone.
    """
    kind, slash, name = backbone.partition("/")
    if not (slash and name):
        raise OptionError(
            "a backbone written SOURCE/NAME, such as timm/resnet50.a1_in1k",
            got=repr(backbone),
            fix=f"put one of {', '.join(plugins.names('backbones'))} and a slash before the name; "
            "`tlexport backbones` lists all",
        )
    source = plugins.load("backbones", kind)
    return source, name, source.build(name, recipe)


def freeze(extractor: torch.nn.Module, sample: tuple[torch.Tensor, ...], backbone: str) -> int:
    """Keep its weights as they are, and ask it once: how many features it gives.

    Raises:
        OptionError: it answers with something else than [batch, width], or not at all.
    """
    for parameter in extractor.parameters():
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode():
            answer = extractor(*sample)
    except Exception as error:  # the network's code raises whatever it likes
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:REASON]}"
        shapes = ", ".join(str(list(tensor.shape)) for tensor in sample)
        raise OptionError(
            f"a backbone that answers inputs of {shapes}",
            got=f"{backbone} raises {told}",
            fix="choose another, see `tlexport backbones`, or mend its configuration",
        ) from error
    if not (isinstance(answer, torch.Tensor) and answer.ndim == 2):
        raise OptionError(
            "a backbone that gives one row of features per example",
            got=f"{backbone} gives {list(getattr(answer, 'shape', [type(answer).__name__]))}",
            fix="choose a classification network, see `tlexport backbones`",
        )
    return answer.shape[1]


def restore(
    bundle: Bundle, assemble: Callable[[Pretrained, dict[str, Any]], torch.nn.Module]
) -> torch.nn.Module:
    """The network that `assemble` makes of a bundle's backbone, with the bundle's weights.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """
    weights = safetensors.torch.load_file(bundle.weights)
    try:
        record = bundle.manifest.network
        _, _, pretrained = build(record["backbone"], record.get("recipe") or {})
        whole = assemble(pretrained, record)
        _weights.put(whole, weights)
    except (KeyError, RuntimeError) as error:
        raise BundleError(
            f"a network in {str(bundle.root)!r} that its weights fit",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:REASON]}",
            fix="bundle.json was changed after it was made, or the library that describes the "
            "network since: restore the one, or install the versions in it",
        ) from error
    return whole.eval()
