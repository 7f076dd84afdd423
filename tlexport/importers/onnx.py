"""An ONNX file that another tool wrote."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.files import is_file
from tlexport.importers import Imported, _declared
from tlexport.options import ImportOptions
from tlexport.spec import TRITON_DTYPES, TensorSpec

INLINE_BYTES = 2_000_000_000
"""Above this the weights stay beside the graph: protobuf cannot hold 2 GiB."""

ONNXRUNTIME_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
FILE, DATA = "model.onnx", "model.onnx.data"


def read(options: ImportOptions) -> Imported:
    """The file as it is, its inputs and outputs read off the graph.

    Raises:
        OptionError: there is no such file, or an input is declared otherwise than it has it.
        DataError: it is no valid ONNX file, its data is missing, or its tensors cannot be served.
    """
    path = Path(str(options.onnx))
    if not is_file(path):
        raise OptionError("--onnx FILE", got=f"no file {str(path)!r}", fix="check the path")
    if options.weights is not None:
        raise OptionError(
            "--onnx FILE without --weights",
            got=f"--weights {options.weights}",
            fix="leave it out: an ONNX file holds its weights",
        )
    model = _load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    symbols = {_dim(value, 0) for value in given} - {None}
    inputs = tuple(_ranged(_tensor(value, symbols), model.graph) for value in given)
    outputs = tuple(_tensor(value, symbols) for value in model.graph.output)
    if not inputs or not outputs:
        raise DataError(
            f"inputs and outputs in {path.name!r}",
            got=f"{len(inputs)} and {len(outputs)}",
            fix="export the model with the inputs it takes",
        )
    inputs = _declared.merged(inputs, options.inputs)
    _, bounds = _declared.parse(options.inputs)
    return Imported(
        network=None,
        inputs=inputs,
        outputs=outputs,
        names=tuple(tensor.name for tensor in outputs),
        bounds=bounds,
        record={"importer": "onnx", "producer": model.producer_name},
        source=path.name,
        keep=functools.partial(_keep, model, path),
        notes=tuple(_notes(model, inputs, outputs)),
    )


def network(bundle: Bundle) -> torch.nn.Module:
    """There is none in PyTorch.

    Raises:
        OptionError: always.
    """
    raise OptionError(
        "a network in PyTorch",
        got=f"{str(bundle.root)!r}, made of an ONNX file",
        fix="ask ort@cpu, or ort@cpu-plain for the file as it was imported",
    )


def _load(path: Path) -> onnx.ModelProto:
    try:
        bare = onnx.load(path, load_external_data=False)
        _hold_data(bare, path)
        onnx.checker.check_model(str(path))
        return onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"an ONNX file {path.name!r} that onnx {onnx.__version__} holds valid",
            got=why,
            fix="export it again; where its data lies in a file beside it, keep the two together",
        ) from error


def _hold_data(model: onnx.ModelProto, path: Path) -> None:
    """Have every file of external data lie beside the graph."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            location = ExternalDataInfo(tensor).location
            if not (path.parent / location).is_file():
                raise DataError(
                    f"the data of {path.name!r} beside it",
                    got=f"no file {location!r}",
                    fix="copy it to the folder of the ONNX file: the two belong together",
                )


def _keep(model: onnx.ModelProto, path: Path, folder: Path) -> tuple[str, ...]:
    """Put the file into a folder, byte for byte or, where its data lies beside it, in one piece."""
    bare = onnx.load(path, load_external_data=False)
    if not any(uses_external_data(tensor) for tensor in bare.graph.initializer):
        shutil.copy(path, folder / FILE)
        return (FILE,)
    if model.ByteSize() <= INLINE_BYTES:
        onnx.save_model(model, folder / FILE)
        return (FILE,)
    onnx.save_model(
        model,
        folder / FILE,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
    )
    return (FILE, DATA) if (folder / DATA).is_file() else (FILE,)


def _dim(value: onnx.ValueInfoProto, place: int) -> str | None:
    """The symbol of an axis; None where it is a constant or there is none."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) <= place or dims[place].HasField("dim_value"):
        return None
    return dims[place].dim_param or f"{value.name}_{place}"


def _tensor(value: onnx.ValueInfoProto, symbols: set[str | None]) -> TensorSpec:
    """A graph's input or output; `symbols` are those of the inputs' first axes, the batch."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise DataError(
            f"a tensor as {value.name!r}",
            got=str(value.type.WhichOneof("value")),
            fix="export without sequences, maps and optionals (of scikit-learn: zipmap=False)",
        )
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    if dtype not in TRITON_DTYPES or dtype == "object" or not kind.HasField("shape"):
        told = dtype if kind.HasField("shape") else f"{dtype} of unknown rank"
        raise DataError(
            f"numbers of a known rank as {value.name!r}",
            got=told,
            fix="export the part of the model that takes and gives numbers",
        )
    shape: list[int | str] = []
    for place, dim in enumerate(kind.shape.dim):
        symbol = _dim(value, place)
        if symbol is None:
            shape.append(dim.dim_value)
        else:
            shape.append("batch" if symbol in symbols or place == 0 else symbol)
    return TensorSpec(
        name=value.name, dtype=dtype, shape=tuple(shape), legal=_declared.WHOLE.get(dtype)
    )


def _ranged(tensor: TensorSpec, graph: onnx.GraphProto) -> TensorSpec:
    """The same with its vocabulary, where one table alone is looked up with its values."""
    if tensor.legal is not None or not tensor.dtype.startswith("int"):
        return tensor
    rows = {each.name: each.dims[0] for each in graph.initializer if each.dims}
    called = {tensor.name}
    called |= {n.output[0] for n in graph.node if n.op_type == "Cast" and n.input[0] in called}
    tables = {
        rows[node.input[0]]
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in rows and node.input[1] in called
    }
    if len(tables) != 1:
        return tensor
    return msgspec.structs.replace(tensor, legal=(0.0, tables.pop() - 1.0))


def _notes(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> list[str]:
    notes = []
    fixed = [tensor for tensor in inputs if not tensor.batched]
    for tensor in fixed:
        if not tensor.shape or tensor.shape[0] != 1:
            raise DataError(
                f"a free batch axis, or one of size 1, first in {_declared.written(tensor)}",
                got=f"the constant {tensor.shape[0]}" if tensor.shape else "a number",
                fix=HOW_DYNAMIC,
            )
    if fixed and len(fixed) < len(inputs):
        raise DataError(
            "a batch axis that all inputs have free, or none",
            got=", ".join(_declared.written(tensor) for tensor in inputs),
            fix=HOW_DYNAMIC,
        )
    stuck = [tensor for tensor in outputs if bool(fixed) == tensor.batched]
    if stuck and not fixed:
        raise DataError(
            f"the batch axis free in every output, as it is in {inputs[0].name}",
            got=", ".join(_declared.written(tensor) for tensor in stuck),
            fix=HOW_DYNAMIC + " (name the outputs in dynamic_axes too)",
        )
    if fixed:
        notes.append(
            "the batch axis is the constant 1: one row at a time, `tlexport package` with "
            f"--max-batch 0. To have it free, {HOW_DYNAMIC}"
        )
    foreign = sorted({e.domain for e in model.opset_import} - ONNXRUNTIME_DOMAINS)
    used = [d for d in foreign if any(node.domain == d for node in model.graph.node)]
    if used and not any(f.domain in used for f in model.functions):
        notes.append(f"operators of {', '.join(used)}: the server needs the library they are from")
    return notes


HOW_DYNAMIC = (
    "export it again with a free first axis: torch.onnx.export(..., dynamic_shapes={'NAME': {0: "
    "torch.export.Dim('batch')}}), or dynamic_axes={'NAME': {0: 'batch'}} of the older exporter"
)
