"""Weights from a hub, a package or a file, into a network."""

from __future__ import annotations

import collections
import importlib.metadata
import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from tlexport.backbones import Pretrained
from tlexport.errors import DataError, OptionError

State = dict[str, torch.Tensor]
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net")
"""Keys under which training programs keep the state dict, likeliest first."""


UNSAFE = ("GLOBAL", "allowlisted", "REDUCE", "TorchScript", "restricted globals")
"""What torch says of a file that names code it does not know to be harmless, or holds some."""


def load(pretrained: Pretrained, request: str | None, fetch: Callable[[], State]) -> str:
    """Put the weights asked for into `pretrained.module`; return where they came from.

    `request` is None or "hub", "random", "package:NAME" or a file.

    Raises:
        OptionError: the file or package is not there, or the hub does not answer.
        DataError: the file is no safe checkpoint, or is one of another network.
    """
    if request == "random":
        return "random"
    if request in (None, "hub"):
        state, source = _from_home(fetch, pretrained.home), pretrained.home
    else:
        path = _in_package(request[8:]) if request.startswith("package:") else Path(request)
        state, source = read(path), request if request.startswith("package:") else path.name
    how = _fit(pretrained, state, source)
    return f"{source} ({how})" if how else source


def read(path: Path) -> State:
    """The tensors of a safetensors file or of a checkpoint that holds tensors and plain values.

    Raises:
        OptionError: no such file.
        DataError: it is damaged, holds no tensors, or needs more than `weights_only=True`.
    """
    if not path.is_file():
        raise OptionError(
            "--weights as hub, random, package:NAME or a file",
            got=f"no file {str(path)!r}",
            fix="check the path",
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():  # they come before the error, and say less
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        why = _first_line(error)
        refused = isinstance(error, (pickle.UnpicklingError, RuntimeError))
        if refused and any(word in why for word in UNSAFE):
            raise DataError(
                f"a checkpoint of tensors and plain values in {path.name!r}",
                got=f"a pickle that needs more, and could run code: {why}",
                fix="save `model.state_dict()` with safetensors.torch.save_file, and pass that",
            ) from error
        raise DataError(
            f"a safetensors file or torch checkpoint {path.name!r}",
            got=why,
            fix="the file is damaged or of another kind: download or save it again",
        ) from error
    return _state_of(found, path)


def put(module: torch.nn.Module, state: State, *, strict: bool = True) -> None:
    """`load_state_dict` with the module's own layer versions.

    Tensors out of a file carry none, and some networks (MNASNet) refuse to load without.
    """
    versioned = collections.OrderedDict(state)
    cast(Any, versioned)._metadata = cast(Any, module.state_dict())._metadata
    module.load_state_dict(versioned, strict=strict)


def _state_of(found: Any, path: Path) -> State:
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    tensors = (
        {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise DataError(
            f"a state dict in {path.name!r}",
            got=f"a {type(found).__name__} without tensors",
            fix="save `model.state_dict()` and pass that file",
        )
    return tensors


def _from_home(fetch: Callable[[], State], home: str) -> State:
    try:
        return fetch()
    except (OSError, RuntimeError, ValueError) as error:  # what URL and hub libraries raise
        raise OptionError(
            f"pre-trained weights from the {home}",
            got=f"{type(error).__name__}: {_first_line(error)}",
            fix="check the network or the folder (safetensors alone are read), or pass --weights "
            "FILE, package:NAME or random",
        ) from error


def _in_package(text: str) -> Path:
    name, _, inner = text.partition("/")
    if not name:
        raise OptionError(
            "--weights package:NAME", got="package: without a name", fix="name the package"
        )
    try:
        listed = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise OptionError(
            f"an installed package {name!r}", got="it is not installed", fix=f"pip install {name}"
        ) from error
    found = [file for file in listed if file.suffix in SUFFIXES and inner in str(file)]
    if len(found) != 1:
        raise OptionError(
            f"one weight file in the package {name!r}",
            got=", ".join(map(str, found)) or f"none with {', '.join(SUFFIXES)}",
            fix="name it: --weights package:NAME/FILE",
        )
    return Path(str(found[0].locate()))


def _fit(pretrained: Pretrained, state: State, source: str) -> str:
    """Load `state` by name, else by order; the classifier is left out, it will be replaced."""
    module, spare = pretrained.module, pretrained.spare
    wanted = {k: v for k, v in module.state_dict().items() if not k.startswith(spare)}
    named = _without_prefix(state, wanted)
    missing = [k for k in wanted if k not in named and not k.endswith("num_batches_tracked")]
    unlike = [k for k in wanted if k in named and named[k].shape != wanted[k].shape]
    if not missing and not unlike:
        left = [k for k in named if k not in wanted and not k.startswith(spare)]
        put(module, {k: named[k] for k in wanted if k in named}, strict=False)
        return f"{len(left)} other tensors ignored" if left else ""
    ordered = _by_order(state, module.state_dict(), spare)
    if ordered is not None:
        put(module, ordered, strict=False)
        return "matched by order and shape"
    first = (missing or unlike)[0]
    shapes = f", here {tuple(named[first].shape)}" if first in named else ", here absent"
    raise DataError(
        f"weights of this network: {len(wanted)} tensors, such as {first} "
        f"{tuple(wanted[first].shape)}",
        got=f"{len(state)} tensors in {source}{shapes}",
        fix="pass the --backbone that these weights belong to",
    )


def _without_prefix(state: State, wanted: State) -> State:
    """Take off what wrappers put before each name (module., model., backbone. ...).

    What this network's own wrapper puts before each is put on.
    """
    firsts = {key.partition(".")[0] for key in wanted}
    own = f"{firsts.pop()}." if len(firsts) == 1 else ""
    best, hits = state, sum(key in wanted for key in state)
    prefixes = {""}
    for key in state:
        parts = key.split(".")
        prefixes |= {".".join(parts[:depth]) + "." for depth in (1, 2) if len(parts) > depth}
    for prefix, on in itertools.product(prefixes, {"", own}):
        cut = {on + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        found = sum(key in wanted for key in cut)
        if found > hits:
            best, hits = cut, found
    return best


def _by_order(state: State, wanted: State, spare: tuple[str, ...]) -> State | None:
    """Pair by position: another dialect of names for the same network.

    Accepted only if each pair has the same last name (weight, running_mean ...) and, but for the
    classifier, the same shape.
    """
    if len(state) != len(wanted):
        return None
    paired = {}
    for (key, old), (name, new) in zip(state.items(), wanted.items(), strict=True):
        if key.rpartition(".")[2] != name.rpartition(".")[2]:
            return None
        if not name.startswith(spare):
            if old.shape != new.shape:
                return None
            paired[name] = old
    return paired


def _first_line(error: Exception) -> str:
    """What happened, without torch's advice to load unsafely (it stands before and after)."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and "Re-running `torch.load`" in lines[0]:
        del lines[0]
    first = (lines or [type(error).__name__])[0]
    return first.partition(". Please use")[0].partition(". In PyTorch 2.6")[0]
