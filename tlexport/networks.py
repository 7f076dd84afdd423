"""The network of a bundle: kept, asked, built again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.files import cannot_write

GOLDEN_BATCH = 8


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    A model that was trained here is built by its task, an imported one by its importer
    (`Manifest.network["importer"]`).

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            that it names.
        OptionError: the bundle holds no such network, as one made from an ONNX file.
    """
    importer = bundle.manifest.network.get("importer")
    room, name = ("importers", importer) if importer else ("tasks", bundle.spec.task)
    built: torch.nn.Module = plugins.load(room, name).network(bundle)
    return built.eval()


def save(network: torch.nn.Module, path: Path) -> None:
    """Write the weights of a network as safetensors.

    Raises:
        BundleError: the disk is full or the folder is not to be written to.
    """
    # Cloned: tensors that layers share would be refused by safetensors; loaded, they are equal.
    state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    try:
        safetensors.torch.save_file(state, path)
    except safetensors.SafetensorError as error:  # what a full disk is called there
        raise cannot_write(path, OSError(str(error))) from error


def answers(
    network: torch.nn.Module,
    inputs: Mapping[str, np.ndarray],
    names: Sequence[str],
    batch: int = GOLDEN_BATCH,
) -> dict[str, np.ndarray]:
    """What the network answers: {output name: [batch, ...]}, asked `batch` rows at a time."""
    count = len(next(iter(inputs.values())))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with torch.inference_mode():
        for at in range(0, count, batch):
            answer = network(
                *(torch.from_numpy(array[at : at + batch]) for array in inputs.values())
            )
            tensors = answer if isinstance(answer, tuple) else (answer,)
            for name, tensor in zip(names, tensors, strict=True):
                parts[name].append(tensor.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
