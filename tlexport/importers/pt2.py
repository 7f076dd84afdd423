"""A program that `torch.export.save` wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.files import is_file
from tlexport.importers import ANY_SIZE, Bounds, Imported, _declared, _flat, _pt2_archive
from tlexport.options import ImportOptions
from tlexport.spec import TensorSpec

FILE = "program.pt2"


class Program(torch.nn.Module):
    """A program as a module; it has one mode, the one it was exported in."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module(check_guards=False)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """As the program was called when it was exported."""
        return self.program(*tensors)

    def train(self, mode: bool = True) -> Program:
        """Nothing: torch's own refuses to be asked."""
        return self


def read(options: ImportOptions) -> Imported:
    """The program, its inputs and their free axes read off its graph.

    Raises:
        OptionError: there is no such file, or an input is declared otherwise than it has it.
        DataError: it holds more than a graph and tensors, or takes something else than tensors.
    """
    path = Path(str(options.pt2))
    if not is_file(path):
        raise OptionError("--pt2 FILE", got=f"no file {str(path)!r}", fix="check the path")
    program = _pt2_archive.load(path)
    notes: list[str] = []
    inputs, bounds = _inputs(program, path)
    inputs = _declared.merged(inputs, options.inputs)
    return Imported(
        network=_flat.Flat(Program(program)),
        inputs=inputs,
        bounds=bounds,
        record={"importer": "pt2"},
        source=path.name,
        keep=lambda folder: (Path(shutil.copy(path, folder / FILE)).name,),
        notes=tuple(notes),
    )


def network(bundle: Bundle) -> torch.nn.Module:
    """The program of a bundle, looked through again.

    Raises:
        BundleError: it is not the one the bundle was made with, or not to be read.
    """
    try:
        program = _pt2_archive.load(bundle.weights)
    except DataError as error:
        raise BundleError(error.expected, got=error.got, fix=error.fix) from error
    return _flat.Flat(Program(program), (), bundle.manifest.network["outputs"])


def _inputs(
    program: torch.export.ExportedProgram, path: Path
) -> tuple[tuple[TensorSpec, ...], Bounds]:
    """The tensors a program takes; a symbolic first axis is the batch.

    Raises:
        DataError: it takes numbers, nested or named inputs, or its batch axis is a constant.
    """
    tree = program.call_spec.in_spec
    names = list(program.graph_signature.user_inputs)
    plain = tree is None or (len(tree.children()[0].children()) == len(names))
    if not plain or not all(isinstance(name, str) for name in names):
        raise DataError(
            "a program that takes tensors by position",
            got=f"{len(names)} inputs, some nested, by keyword, or no tensors",
            fix="export a module whose forward() takes tensors only, passed by position",
        )
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [cast(torch.Tensor, nodes[str(name)].meta["val"]) for name in names]
    axes: dict[str, str] = {}
    bounds: Bounds = {}
    found = []
    for name, tensor in zip(names, tensors, strict=True):
        shape: list[int | str] = []
        for place, size in enumerate(tensor.shape):
            if isinstance(size, int):
                shape.append(size)
                continue
            text = str(size)
            label = "batch" if place == 0 else f"{name}_{place}"
            label = axes.setdefault(text, label)
            bounds[label] = _range(program, size)
            shape.append(label)
        found.append(
            TensorSpec(
                name=str(name),
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(shape),
                legal=_declared.WHOLE.get(str(tensor.dtype).removeprefix("torch.")),
            )
        )
        _hold_batch(found[-1], path)
    return tuple(found), bounds


def _range(program: torch.export.ExportedProgram, size: Any) -> tuple[int, int]:
    low, high = ANY_SIZE
    limits = program.range_constraints.get(size.node.expr)
    if limits is None:
        return low, high
    # An exporter that saw sizes of 2 notes a range from 2 on; it answers 1 all the same.
    least = int(limits.lower) if limits.lower > 2 else low
    most = str(limits.upper)
    return max(low, least), int(most) if most.isdigit() else high


def _hold_batch(tensor: TensorSpec, path: Path) -> None:
    if tensor.shape and tensor.shape[0] in ("batch", 1):
        return
    raise DataError(
        f"a free batch axis, or one of size 1, first in {_declared.written(tensor)}",
        got=f"the constant {tensor.shape[0]} in {path.name!r}" if tensor.shape else "a number",
        fix="export it again with dynamic_shapes={'" + tensor.name + "': {0: torch.export.Dim("
        "'batch')}}, from samples of 2 rows or more",
    )
