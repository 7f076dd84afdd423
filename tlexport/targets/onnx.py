"""The ONNX file that a Triton release can read."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch

from tlexport import networks
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import ExportError
from tlexport.options import ExportOptions
from tlexport.serving.releases import Release, release
from tlexport.spec import ModelSpec, Tensors, TensorSpec
from tlexport.targets import _graph
from tlexport.targets._attention import in_four_dimensions
from tlexport.targets._brain import Brain
from tlexport.targets._file import Form, artifact, readable, strip
from tlexport.targets._half import Half
from tlexport.targets._int8 import Int8
from tlexport.targets._lowering import Lowered, Lowering, Wish
from tlexport.targets._reasons import (
    Conditions,
    conditions,
    constant,
    hold_ranges,
    reason,
    untraceable,
)
from tlexport.targets._session import Session, save

PRECISIONS: dict[str, Callable[[Wish], Lowering]] = {"fp16": Half, "bf16": Brain, "int8": Int8}


def export(bundle: Bundle, folder: Path, options: ExportOptions) -> Artifact:
    """Write `model.onnx` into `folder`, or `model.onnx/model.onnx` and its data above 2 GB.

    Every symbolic axis of the spec is dynamic in the file; it is traced at batch 2, since 1 would
    be taken for a constant. An ONNX file that was imported is taken over, its opset and IR version
    changed only where the release asks for it.

    Raises:
        ExportError: the network cannot be traced, an axis came out constant, or the file cannot
            be made readable for the release asked for.
        OptionError: that release is not known.
    """
    wanted = release(options.triton) if options.triton else None
    if bundle.manifest.original:
        model = trace(bundle, wanted).model_proto
        strip(model, keep_modules=True)
    else:
        model = _taken_over(bundle)
    if wanted is not None:
        model = readable(model, wanted)
    return artifact(model, bundle, folder, Form(), {"triton": options.triton})


def lowering(precision: str, wish: Wish) -> Lowering:
    """The fp32 file of `wish` on its way to a precision of `PRECISIONS`.

    Raises:
        ExportError: it is no fp32 model, or has nothing that could be lowered.
        OptionError: --quantization asks for what the model has not.
    """
    return PRECISIONS[precision](wish)


def finish(bundle: Bundle, folder: Path, lowered: Lowered, options: ExportOptions) -> Artifact:
    """Write a lowered model as `export` writes one, read by the same releases.

    Raises:
        ExportError: it cannot be made readable for the release asked for.
    """
    model = lowered.model
    if options.triton:
        model = readable(model, release(options.triton))
    form = Form(precision=options.precision, io=options.io_precision)
    return artifact(model, bundle, folder, form, {"triton": options.triton, **lowered.facts})


def open_file(file: Path) -> Session:
    """The file as it will be served on this machine's CPU.

    Raises:
        ExportError: ONNX Runtime does not load it.
    """
    return Session(file)


def trace(bundle: Bundle, wanted: Release | None) -> torch.onnx.ONNXProgram:
    """The bundle's network traced, every symbolic axis free, for a release or the newest opset.

    Raises:
        ExportError: it cannot be traced, or an axis came out constant.
    """
    return _traced(networks.network(bundle), bundle.spec, bundle.golden().inputs, wanted)


def part(network: torch.nn.Module, spec: ModelSpec, samples: Tensors, folder: Path) -> Session:
    """A network that is in no bundle, as ONNX Runtime runs it: its file is written to `folder`.

    `samples` are two rows or more of each input of `spec`.

    Raises:
        ExportError: it cannot be traced, or ONNX Runtime does not load it.
    """
    model = _traced(network, spec, samples, None).model_proto
    return Session(save(model, folder / "part.onnx"))


def inner(file: Path, width: int, folder: Path) -> tuple[Session, str]:
    """A classifier's file, and the name of what its head takes: float32 [batch, width].

    The session answers that beside what the file answers; its graph is written to `folder`.

    Raises:
        ExportError: no such value leads to the answer, or ONNX Runtime does not load it.
    """
    model = onnx.load(file)
    name = _graph.nearest(model.graph, width)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return Session(save(model, folder / "inner.onnx")), name


def _traced(
    network: torch.nn.Module, spec: ModelSpec, rows: Tensors, wanted: Release | None
) -> torch.onnx.ONNXProgram:
    inputs = spec.inputs
    picked = [0, -1] if all(tensor.batched for tensor in inputs) else [0]
    samples = tuple(torch.from_numpy(rows[tensor.name][picked]) for tensor in inputs)
    axes = {axis for tensor in inputs for axis in tensor.shape if isinstance(axis, str)}
    try:
        with _quiet(), in_four_dimensions(), conditions() as watched:
            program = torch.onnx.export(
                network,
                samples,
                dynamo=True,
                verbose=False,
                opset_version=_opset_for(wanted),
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=_dynamic(spec, network),
            )
    except Exception as error:  # the exporter raises whatever the traced code raises
        raise untraceable(error, axes) from error
    assert program is not None
    assert program.exported_program is not None
    _hold_signature(program.model_proto, spec, watched)
    hold_ranges(program.exported_program, spec, watched)
    return program


def _dynamic(spec: ModelSpec, network: torch.nn.Module) -> tuple[Any, ...]:
    """Which axes are free, as torch.export wants it told: nested where forward() takes *tensors."""
    bounds: dict[str, tuple[int, int]] = spec.preprocess.get("axes", {})
    axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    dims = {}
    for axis in sorted(axes):
        low, high = bounds.get(axis, (None, None))
        dims[axis] = torch.export.Dim(axis, min=low, max=high)
    shapes = tuple(
        {place: dims[axis] for place, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    kinds = {p.kind for p in inspect.signature(network.forward).parameters.values()}
    return (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


def _taken_over(bundle: Bundle) -> onnx.ModelProto:
    """The file that a bundle was made of, as it is.

    Raises:
        BundleError: it is another file than the one that was imported.
        ExportError: it is no ONNX file.
    """
    file = bundle.weights
    try:
        return onnx.load(file)
    except Exception as error:  # protobuf's exceptions share no base but this
        raise ExportError(
            f"an ONNX file in {str(bundle.root)!r}, which has no network in PyTorch",
            got=f"{bundle.manifest.weights}: {reason(error)}",
            fix="import the model itself",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings off the terminal: what it wrote is read back and checked."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        # A trace that fails prints its graphs straight to stderr.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _opset_for(wanted: Release | None) -> int | None:
    """The exporter's own choice, unless the release reads no opset that new."""
    return None if wanted is None else min(wanted.max_opset, 20)


def _hold_signature(model: onnx.ModelProto, spec: ModelSpec, watched: Conditions) -> None:
    """Compare what was written with the spec: names, types, and which axes are dynamic.

    Raises:
        ExportError: naming the tensor and the axis.
    """
    for declared, written in (
        (spec.inputs, model.graph.input),
        (spec.outputs, model.graph.output),
    ):
        names = [value.name for value in written]
        if names != [tensor.name for tensor in declared]:
            raise ExportError(
                f"the tensors {[tensor.name for tensor in declared]}",
                got=str(names),
                fix="the network takes or answers other tensors than its task declares",
            )
        for tensor, value in zip(declared, written, strict=True):
            _hold_tensor(tensor, value, watched)


def _hold_tensor(tensor: TensorSpec, value: onnx.ValueInfoProto, watched: Conditions) -> None:
    found = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.elem_type).name
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in found.shape.dim]
    if dtype != tensor.dtype or len(shape) != len(tensor.shape):
        raise ExportError(
            f"{tensor.name} as {tensor.dtype} {list(tensor.shape)}",
            got=f"{dtype} {shape}",
            fix="the network answers something else than its task declares",
        )
    for place, (want, size) in enumerate(zip(tensor.shape, shape, strict=True)):
        if isinstance(want, str) == isinstance(size, str) and (
            isinstance(want, str) or want == size
        ):
            continue
        if isinstance(size, int) and isinstance(want, str):
            raise constant(tensor.name, place, size, watched)
        raise ExportError(
            f"axis {place} of {tensor.name} to be {want}",
            got=f"{'the dynamic' if isinstance(size, str) else 'the constant'} {size}",
            fix="the network answers something else than its task declares",
        )
