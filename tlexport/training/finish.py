"""The trained network and its golden samples, as a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import safetensors
import safetensors.torch
import torch

from tlexport import bundle as bundles
from tlexport.bundle import Bundle, GoldenSample, Manifest
from tlexport.environment import versions
from tlexport.files import cannot_write, sha256_of, text_of
from tlexport.spec import ModelSpec
from tlexport.tasks import Example, Learner

GOLDEN_BATCH = 8

LONGEST_NAME = 60
"""Characters kept of a golden file's name: with a number before it, it still is a legal name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network and what it is for."""

    task: ModuleType
    spec: ModelSpec
    learner: Learner
    network: torch.nn.Module


def golden_of(held_out: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` held-out examples, as many of each class as can be, by seed."""
    rng = np.random.default_rng(seed)
    turns: dict[int, int] = {}
    order = []
    for place in rng.permutation(len(held_out)):
        label = held_out[place].label
        turns[label] = turns.get(label, 0) + 1
        order.append((turns[label], int(place)))
    return [held_out[place] for _, place in sorted(order)[:count]]


def write(folder: Path, model: Model, golden: Sequence[Example]) -> Bundle:
    """Fill `folder` with the bundle of `model`: weights, golden samples, manifest."""
    network = model.network.cpu().to(memory_format=torch.contiguous_format).eval()
    inputs = model.task.load(
        [example.source for example in golden], model.learner.preprocess, model.learner.files
    ).inputs
    outputs = _answers(network, inputs, [tensor.name for tensor in model.spec.outputs])
    # Cloned: tensors that layers share would be refused by safetensors; loaded, they are equal.
    state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    try:
        safetensors.torch.save_file(state, folder / "weights.safetensors")
    except safetensors.SafetensorError as error:  # what a full disk is called there
        raise cannot_write(folder / "weights.safetensors", OSError(str(error))) from error
    bundles.write_tensors(folder / "golden" / "inputs.safetensors", inputs)
    bundles.write_tensors(folder / "golden" / "outputs.safetensors", outputs)
    samples = tuple(
        GoldenSample(
            file=f"{number:03d}-{text_of(example.source.name[-LONGEST_NAME:])}",
            label=model.spec.labels[example.label],
        )
        for number, example in enumerate(golden)
    )
    (folder / "golden" / "raw").mkdir()
    for sample, example in zip(samples, golden, strict=True):
        (folder / "golden" / "raw" / sample.file).write_bytes(example.source.read_bytes())
    manifest = Manifest(
        spec=model.spec,
        network=model.learner.network,
        weights_sha256=sha256_of(folder / "weights.safetensors"),
        golden_sha256=bundles.golden_digest(folder / "golden"),
        golden=samples,
        files=bundles.write_files(folder, model.learner.files),
        versions=versions(),
    )
    (folder / "bundle.json").write_bytes(bundles.encode(manifest))
    return Bundle(folder)


def _answers(
    network: torch.nn.Module, inputs: dict[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """What the network answers: {output name: [batch, ...]}."""
    count = len(next(iter(inputs.values())))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with torch.inference_mode():
        for at in range(0, count, GOLDEN_BATCH):
            answer = network(
                *(torch.from_numpy(array[at : at + GOLDEN_BATCH]) for array in inputs.values())
            )
            tensors = answer if isinstance(answer, tuple) else (answer,)
            for name, tensor in zip(names, tensors, strict=True):
                parts[name].append(tensor.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
