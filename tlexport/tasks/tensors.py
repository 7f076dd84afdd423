"""Arrays in, arrays out, of any meaning."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from tlexport.bundle import Bundle
from tlexport.errors import OptionError
from tlexport.options import DataOptions, TrainOptions
from tlexport.spec import ModelSpec, Probe, Tensors, rows
from tlexport.tasks import (
    Decisions,
    Examples,
    Learner,
    Loaded,
    Scorer,
    Source,
    _class_folders,
    _classify,
)
from tlexport.tasks._augment_nothing import augment as augment

NAME = "tensors"
ARRAYS = _class_folders.Kind(suffixes={".npz", ".npy"}, name="arrays")

Shape = tuple[str, list[int | str]]
"""dtype and axes of an input, as `preprocess["inputs"]` keeps them by name."""


def read(root: Path, choice: DataOptions | None = None, known: tuple[str, ...] = ()) -> Examples:
    """The labelled arrays below `root`: a folder per class with an .npz file per example.

    Raises:
        DataError: the layout is another, or a class is empty.
    """
    return _class_folders.read(root, ARRAYS, known)


def load(
    sources: Sequence[Source], preprocess: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> Loaded:
    """A row of each input per source: an .npz with an array per input by name, or an .npy of one.

    Free axes have the sizes of the first that could be read; others are broken.
    """
    shapes: dict[str, Shape] = preprocess["inputs"]
    found: dict[int, dict[str, np.ndarray]] = {}
    broken: dict[int, str] = {}
    for place, source in enumerate(sources):
        try:
            arrays = _row(source, shapes)
            first = next(iter(found.values()), arrays)
            for name, array in arrays.items():
                if array.shape != first[name].shape:
                    raise ValueError(
                        f"{name!r} of shape {list(array.shape)}, {list(first[name].shape)} in the "
                        "file before it: ask for files of one size together, or --batch 1"
                    )
            found[place] = arrays
        except (ValueError, OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
            broken[place] = str(error) or type(error).__name__
    like = next(iter(found.values()), None) or {
        name: np.zeros([n if isinstance(n, int) else 1 for n in shape[1:]], dtype)
        for name, (dtype, shape) in shapes.items()
    }
    inputs = {
        name: np.stack([found.get(n, {}).get(name, np.zeros_like(a)) for n in range(len(sources))])
        for name, a in like.items()
    }
    return Loaded(inputs, broken)


def _row(source: Source, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    loaded = np.load(io.BytesIO(source.read_bytes()), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if len(shapes) > 1:
            raise ValueError(f"one array without a name; the inputs are {', '.join(shapes)}")
        arrays = {next(iter(shapes)): loaded}
    else:
        with loaded:
            missing = [name for name in shapes if name not in loaded.files]
            if missing:
                raise ValueError(f"no array {', '.join(missing)} among {', '.join(loaded.files)}")
            arrays = {name: loaded[name] for name in shapes}
    return {name: _fitted(name, arrays[name], shape) for name, shape in shapes.items()}


def _fitted(name: str, array: np.ndarray, declared: Shape) -> np.ndarray:
    """The array without the batch axis, of the declared dtype and sizes."""
    dtype, shape = declared
    if array.ndim == len(shape) and len(array) == 1:
        array = array[0]
    fits = array.ndim == len(shape) - 1 and all(
        isinstance(want, str) or want == size
        for want, size in zip(shape[1:], array.shape, strict=True)
    )
    if not fits or array.dtype.name != dtype:
        raise ValueError(
            f"{name!r} is {array.dtype.name} {list(array.shape)}, and shall be {dtype} {shape[1:]} "
            "(a row a file)"
        )
    return array


def learner(options: TrainOptions, examples: Examples) -> Learner:
    """None: there is no backbone for arrays of any meaning.

    Raises:
        OptionError: always.
    """
    _refuse_training()


def spec(name: str, labels: tuple[str, ...], learner: Learner) -> ModelSpec:
    """None, as `learner`.

    Raises:
        OptionError: always.
    """
    _refuse_training()


def assemble(learner: Learner, head: torch.nn.Linear) -> torch.nn.Module:
    """None, as `learner`.

    Raises:
        OptionError: always.
    """
    _refuse_training()


def network(bundle: Bundle) -> torch.nn.Module:
    """None: such models are imported, and built again by their importer.

    Raises:
        OptionError: always.
    """
    _refuse_training()


def _refuse_training() -> NoReturn:
    raise OptionError(
        "a task that can be trained",
        got=f"--task {NAME}, for models that were trained elsewhere",
        fix="choose another --task, or take a finished model in with `tlexport import`",
    )


def decide(spec: ModelSpec, outputs: Tensors) -> Decisions:
    """Softmax of the first output that is [batch, labels].

    Raises:
        OptionError: the model has no labels, or no such output.
    """
    shape = ("batch", len(spec.labels))
    place = next((n for n, t in enumerate(spec.outputs) if spec.labels and t.shape == shape), None)
    if place is None:
        raise OptionError(
            "a model that tells labels",
            got=f"{spec.name}, which answers "
            + ", ".join(f"{t.name} [{', '.join(map(str, t.shape))}]" for t in spec.outputs),
            fix="import it with --labels FILE, if an output is [batch, labels]; `tlexport verify` "
            "compares numbers of any kind",
        )
    chosen = spec.outputs[place]
    return _classify.decide(
        ModelSpec(name=spec.name, task=NAME, inputs=spec.inputs, outputs=(chosen,)), outputs
    )


def scorer(spec: ModelSpec) -> Scorer:
    """Counts decisions against the truth."""
    return _classify.scorer(spec)


def probes(spec: ModelSpec, inputs: dict[str, np.ndarray], most: int) -> list[Probe]:
    """Golden rows at the other sizes of free axes that the model answered when it was imported."""
    sizes: dict[str, list[int]] = spec.preprocess.get("sizes", {})
    count = max(1, min(most, 2, *(len(array) for array in inputs.values())))
    few = rows(inputs, slice(0, count if all(t.batched for t in spec.inputs) else 1))
    return [
        Probe(name=f"{axis} {size}", inputs=resized(spec, few, axis, size))
        for axis, others in sizes.items()
        for size in others
    ]


def resized(spec: ModelSpec, inputs: Tensors, axis: str, size: int) -> dict[str, np.ndarray]:
    """The same inputs with a free axis cut, or repeated, to another size."""
    found = {}
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        for place, name in enumerate(tensor.shape):
            if name == axis and place:
                index = np.arange(size) % array.shape[place]
                array = np.take(array, index, axis=place)
        found[tensor.name] = np.ascontiguousarray(array)
    return found
