"""Golden samples of an imported model: the user's, or drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.bundle import Raw
from tlexport.errors import DataError
from tlexport.files import is_there
from tlexport.importers import Imported, _flat, _samples
from tlexport.options import ImportOptions
from tlexport.spec import Tensors, rows
from tlexport.stages import _probing

SAME = 1e-3
"""Share of the scale by which answers that came with samples may be off the network's own: they
may be from another machine, and were written by another program."""

LISTED = 20
ARRAYS = (".npz", ".npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """Inputs with a row per sample, as they came, and arrays beside them, such as answers."""

    inputs: dict[str, np.ndarray]
    raw: list[Raw]
    origin: str
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A raw input that was drawn, as a task reads it."""

    raw: Raw

    @property
    def name(self) -> str:
        return self.raw.name

    def read_bytes(self) -> bytes:
        return self.raw.content


def given(taken: Imported, options: ImportOptions) -> Given | None:
    """The user's samples; None where there are none.

    Raises:
        DataError: they cannot be read, or are not of the inputs' names.
        SpecError: they are of another dtype, shape or range than the inputs.
    """
    if options.samples is None:
        return None
    path = Path(options.samples)
    if not is_there(path):
        raise DataError(f"samples {str(path)!r}", got="nothing there", fix=f"pass {_samples.FORM}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    visible = [p for p in files if not p.name.startswith(".")]
    if taken.task != "tensors" and not any(p.suffix in ARRAYS for p in visible):
        return _loaded(visible, taken, options)
    only = taken.inputs[0].name if len(taken.inputs) == 1 else None
    found = _samples.arrays(path, only)
    inputs, extra = _samples.picked(found, taken.inputs, options.golden)
    raw = _samples.as_raw(inputs, "sample")
    return Given(inputs=inputs, raw=raw, origin=f"{len(raw)} from {path.name}", extra=extra)


def _loaded(files: Sequence[Path], taken: Imported, options: ImportOptions) -> Given:
    """Raw files, read as the task reads them; those in a folder of a label's name have it."""
    if not files:
        raise DataError("sample files", got="an empty folder", fix="pass a folder with some")
    task: ModuleType = plugins.load("tasks", taken.task)
    count = min(options.golden, len(files))
    chosen = [files[n] for n in np.linspace(0, len(files) - 1, count).round().astype(int)]
    loaded = task.load(chosen, taken.preprocess, taken.files)
    if loaded.broken:
        told = [f"{chosen[row]}: {why}" for row, why in list(loaded.broken.items())[:LISTED]]
        raise DataError(
            "samples that can be read",
            got=f"{len(loaded.broken)} broken of {count}:\n    " + "\n    ".join(told),
            fix="mend or remove them",
        )
    raw = [
        Raw(
            name=file.name,
            content=file.read_bytes(),
            label=file.parent.name if file.parent.name in taken.labels else "",
        )
        for file in chosen
    ]
    return Given(inputs=loaded.inputs, raw=raw, origin=f"{count} of {len(files)} files")


def ranged(taken: Imported, ask: _probing.Ask) -> _probing.Model:
    """The model with a range for every input: a vocabulary may be read off its embedding.

    Raises:
        OptionError: an input has none; nothing is drawn blindly.
    """
    open_ = [t for t in taken.inputs if t.legal is None and t.dtype != "bool"]
    ids = [t for t in open_ if np.dtype(t.dtype).kind in "iu"]
    network = taken.network
    if network is None or len(ids) < len(open_):
        if open_ and taken.raw is None:
            raise _samples.undeclared(open_)
        return _probing.Model(ask=ask, inputs=taken.inputs, bounds=taken.bounds)
    zeros = tuple(
        msgspec.structs.replace(t, legal=(0.0, 0.0)) if t in ids else t for t in taken.inputs
    )
    trial = _probing.Model(ask=ask, inputs=zeros, bounds=taken.bounds)
    specs = list(taken.inputs)
    if ids:
        question = _draw(trial, 2, np.random.default_rng(0))
        for place, spec in enumerate(specs):
            if spec in ids:
                size = _flat.vocabulary(network, question, spec.name)
                if size is None:
                    raise _samples.undeclared(ids)
                specs[place] = msgspec.structs.replace(spec, legal=(0.0, size - 1.0))
    return _probing.Model(ask=ask, inputs=tuple(specs), bounds=taken.bounds)


def drawn(taken: Imported, model: _probing.Model, options: ImportOptions) -> Given:
    """Inputs drawn within range, at sizes of free axes that the model answers."""
    rng = np.random.default_rng(options.seed)
    origin = f"{options.golden} drawn within the inputs' ranges (seed {options.seed})"
    if taken.raw is not None:
        raw = taken.raw(options.golden, rng)
        task: ModuleType = plugins.load("tasks", taken.task)
        inputs = task.load([_Drawn(each) for each in raw], taken.preprocess, taken.files).inputs
        return Given(inputs=inputs, raw=raw, origin=origin)
    inputs = _draw(model, options.golden, rng)
    return Given(inputs=inputs, raw=_samples.as_raw(inputs, "drawn"), origin=origin)


def _draw(model: _probing.Model, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    few = 2 if model.batched else 1

    def trial(sizes: Mapping[str, int]) -> Tensors:
        return _samples.drawn(model.inputs, sizes, few, np.random.default_rng(0))

    return _samples.drawn(model.inputs, _probing.sizes_of(model, trial), count, rng)


def asked(ask: _probing.Ask, inputs: Tensors, batch: int) -> dict[str, np.ndarray]:
    """Answers to all samples, asked `batch` rows at a time."""
    count = len(next(iter(inputs.values())))
    parts = [ask(rows(inputs, slice(at, at + batch))) for at in range(0, count, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compared(
    given: Given, answers: Tensors, *, original: bool
) -> tuple[Literal["original", "samples", "file"], list[str]]:
    """Whose answers are golden, and notes: those of the samples are held against the network's.

    Raises:
        DataError: the network answers otherwise, or answers of a file's samples are not whole.
    """
    stored = {name: array for name, array in given.extra.items() if name in answers}
    strange = sorted(set(given.extra) - set(stored))
    notes = [f"arrays in --samples that are no input or output: {', '.join(strange)}"]
    notes = notes if strange else []
    if not stored:
        return ("original" if original else "file"), notes
    unlike = [
        f"{name} {array.dtype} {list(array.shape)} for {answers[name].dtype} "
        f"{list(answers[name].shape)}"
        for name, array in stored.items()
        if (array.dtype, array.shape) != (answers[name].dtype, answers[name].shape)
    ]
    missing = [name for name in answers if name not in stored and not original]
    if unlike or missing:
        raise DataError(
            "answers in --samples as the model gives them, for all outputs or none",
            got="; ".join(unlike) or f"none for {', '.join(missing)}",
            fix="store what the model answered: an array per output, a row per sample",
        )
    if not original:
        return "samples", notes
    off = _probing.differences(stored, answers, SAME)
    if off:
        raise DataError(
            "a network that answers the samples as they are stored",
            got="; ".join(off),
            fix="the weights are others, or the inputs were prepared otherwise: pass the weights "
            "and inputs that the answers belong to",
        )
    return "original", [*notes, "the network answers the samples as they are stored"]
