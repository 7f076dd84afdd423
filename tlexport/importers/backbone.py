"""SOURCE/NAME: a torchvision or timm network, fine-tuned."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch

from tlexport.backbones import Pretrained, _weights
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError, TlexportError
from tlexport.importers import Imported, _images, _state
from tlexport.options import ImportOptions
from tlexport.tasks import _frozen
from tlexport.tasks.image_classification import NAME

NUMBERS = ("no --labels FILE: the classes are called 0, 1, ...",)


def read(options: ImportOptions) -> Imported:
    """The network with the user's weights, its classifier as wide as theirs.

    Raises:
        OptionError: there is no such network, it is not for images, or no weights are named.
        DataError: the weights are not all of this network's.
    """
    text = str(options.backbone)
    if options.weights is None:
        raise OptionError(
            "--weights FILE, a fine-tuned state dict",
            got=f"--backbone {text} alone",
            fix="pass the file; for weights from the hub there is `tlexport train`",
        )
    _, _, pretrained = _frozen.build(text)
    if pretrained.modality != "image":
        raise OptionError(
            "a network for images",
            got=f"{text}, which is for {pretrained.modality}",
            fix="import a folder that transformers wrote with --huggingface",
        )
    state, file = _state.read(options.weights)
    state = _weights._without_prefix(state, pretrained.module.state_dict())
    state, notes = _without_auxiliary(pretrained, state)
    classes = _classes(pretrained, state, file)
    _widen(pretrained, classes)
    _state.load(pretrained.module, state, file)
    return Imported(
        network=_whole(pretrained, pretrained.preprocess),
        inputs=_images.inputs_of(pretrained.preprocess),
        names=("logits",),
        record={
            "importer": "backbone",
            "backbone": text,
            "recipe": pretrained.recipe,
            "classes": classes,
        },
        source=f"{text}, weights {file}",
        task=NAME,
        labels=tuple(map(str, range(classes))),
        preprocess=pretrained.preprocess,
        raw=functools.partial(_images.drawn, pretrained.preprocess),
        notes=(*notes, *(NUMBERS if options.labels is None else ())),
    )


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights.

    Raises:
        BundleError: the library has no such network any more, or the weights are not its.
    """
    record = bundle.manifest.network
    try:
        _, _, pretrained = _frozen.build(record["backbone"], record["recipe"])
    except TlexportError as error:
        raise BundleError(error.expected, got=error.got, fix=error.fix) from error
    _widen(pretrained, int(record["classes"]))
    return _state.restore(_whole(pretrained, bundle.spec.preprocess), bundle)


def _whole(pretrained: Pretrained, preprocess: dict[str, Any]) -> torch.nn.Module:
    return _images.Behind(pretrained.module, preprocess["mean"], preprocess["std"]).eval()


def _without_auxiliary(
    pretrained: Pretrained, state: _weights.State
) -> tuple[_weights.State, list[str]]:
    """Leave out heads that only training uses: the network is built without."""
    own = pretrained.module.state_dict()
    heads = tuple(p for p in pretrained.spare if not any(name.startswith(p) for name in own))
    dropped = [name for name in state if heads and name.startswith(heads)]
    if not dropped:
        return state, []
    named = ", ".join(head.rstrip(".") for head in heads)
    note = (
        f"auxiliary heads that only training uses were left out: {named} ({len(dropped)} tensors)"
    )
    return {k: v for k, v in state.items() if k not in dropped}, [note]


def _heads(pretrained: Pretrained) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """The classifier's layers by path."""
    return {
        path: part
        for path, part in pretrained.module.named_modules()
        if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))
        and f"{path}.".startswith(pretrained.spare)
    }


def _classes(pretrained: Pretrained, state: _weights.State, file: str) -> int:
    heads = _heads(pretrained)
    widths = {len(state[f"{path}.weight"]) for path in heads if f"{path}.weight" in state}
    if len(widths) == 1:
        return widths.pop()
    names = ", ".join(f"{path}.weight" for path in heads)
    like = [name for name in state if name.startswith(pretrained.spare)]
    raise DataError(
        f"a classifier {names} in {file!r}, which tells the number of classes",
        got=f"{', '.join(like[:5])}" if like else "no tensor of a classifier",
        fix="a classifier of your own making is no part of this network: import it with --module, "
        "from a function that builds it",
    )


def _widen(pretrained: Pretrained, classes: int) -> None:
    for path, part in _heads(pretrained).items():
        bias = part.bias is not None
        new: torch.nn.Module
        if isinstance(part, torch.nn.Linear):
            new = torch.nn.Linear(part.in_features, classes, bias=bias)
        else:
            kernel = cast(tuple[int, int], part.kernel_size)
            new = torch.nn.Conv2d(part.in_channels, classes, kernel, bias=bias)
        pretrained.module.set_submodule(path, new)
