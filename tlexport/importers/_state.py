"""A state dict into the network it belongs to, all of it."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from tlexport.backbones import _weights
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError

SHOWN = 5


def load(module: torch.nn.Module, state: _weights.State, source: str) -> None:
    """Put every tensor in its place; what wrappers put before each name is taken off.

    Raises:
        DataError: tensors are missing, left over, or of another shape; all are counted.
    """
    wanted = module.state_dict()
    state = _weights._without_prefix(state, wanted)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in wanted]
    unlike = [
        f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or surplus or unlike:
        faults = (
            _some(missing, "missing"),
            _some(surplus, "not of this network"),
            _some(unlike, "of another shape"),
        )
        raise DataError(
            f"weights of this network: {len(wanted)} tensors",
            got=f"{len(state)} in {source}; " + "; ".join(filter(None, faults)),
            fix="build the network as it was trained (the same classes and options), or pass the "
            "weights that belong to it",
        )
    _weights.put(module, state, strict=False)


def read(path: str) -> tuple[_weights.State, str]:
    """The tensors of a file, no pickle but with `weights_only`, and what to call it."""
    return _weights.read(Path(path)), Path(path).name


def restore(module: torch.nn.Module, bundle: Bundle) -> torch.nn.Module:
    """The same network with a bundle's weights.

    Raises:
        BundleError: they are not this network's, or changed since the bundle was made.
    """
    state = safetensors.torch.load_file(bundle.weights)
    try:
        _weights.put(module, state)
    except RuntimeError as error:
        raise BundleError(
            f"a network in {str(bundle.root)!r} that its weights fit",
            got=" ".join(str(error).split())[:200],
            fix="the code or library that describes the network is another since it was imported: "
            "restore it, or import again",
        ) from error
    return module.eval()


def _some(names: list[str], what: str) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}" if names else ""
