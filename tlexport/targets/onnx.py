"""The ONNX file that a Triton release can read."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnx.version_converter
import torch

from tlexport import networks
from tlexport.bundle import Artifact, Bundle, digest_of
from tlexport.environment import versions
from tlexport.errors import ExportError
from tlexport.options import ExportOptions
from tlexport.serving.releases import Release, oldest_that_reads, readers, release
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.targets._attention import in_four_dimensions
from tlexport.targets._domains import lower, opsets_of
from tlexport.targets._reasons import (
    Conditions,
    conditions,
    constant,
    hold_ranges,
    reason,
    untraceable,
)

INLINE_BYTES = 2_000_000_000
"""Above this the weights go beside the graph: protobuf cannot hold 2 GiB."""

PRIVATE = "pkg.torch.onnx.stack_trace"
"""Node metadata with paths of the exporting machine; the other keys name the PyTorch module."""

LOWEST_IR = {
    7: 3,
    8: 3,
    9: 4,
    10: 5,
    11: 6,
    12: 7,
    13: 7,
    14: 7,
    15: 8,
    16: 8,
    17: 8,
    18: 8,
    19: 9,
    20: 9,
    21: 10,
}
"""The oldest IR version that can hold an opset, where it is older than what the exporter stamps.

Source: onnx's own version table, https://onnx.ai/onnx/repo-docs/Versioning.html.
"""


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
        _strip(model, keep_modules=True)
    else:
        model = _taken_over(bundle)
    if wanted is not None:
        model = _readable(model, wanted)
    _describe(model, bundle)
    files = _write(model, folder)
    opsets = opsets_of(model)
    oldest = oldest_that_reads(opsets, model.ir_version)
    return Artifact(
        target="onnx",
        precision="fp32",
        file=files[0],
        files=files,
        sha256=digest_of(folder, files),
        source_sha256=bundle.manifest.weights_sha256,
        triton_backend="onnxruntime",
        options={
            "opset": opset_of(model),
            "opsets": opsets,
            "ir_version": model.ir_version,
            "triton": options.triton,
            "triton_oldest": oldest.triton if oldest else None,
        },
        versions=versions(),
    )


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ai.onnx domain that a model imports."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def trace(bundle: Bundle, wanted: Release | None) -> torch.onnx.ONNXProgram:
    """The bundle's network traced, every symbolic axis free, for a release or the newest opset.

    Raises:
        ExportError: it cannot be traced, or an axis came out constant.
    """
    network = networks.network(bundle)
    golden, inputs = bundle.golden().inputs, bundle.spec.inputs
    picked = [0, -1] if all(tensor.batched for tensor in inputs) else [0]
    samples = tuple(torch.from_numpy(golden[tensor.name][picked]) for tensor in inputs)
    axes = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    try:
        with _quiet(), in_four_dimensions(), conditions() as watched:
            program = torch.onnx.export(
                network,
                samples,
                dynamo=True,
                verbose=False,
                opset_version=_opset_for(wanted),
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in bundle.spec.outputs],
                dynamic_shapes=_dynamic(bundle.spec, network),
            )
    except Exception as error:  # the exporter raises whatever the traced code raises
        raise untraceable(error, axes) from error
    assert program is not None
    assert program.exported_program is not None
    _hold_signature(program.model_proto, bundle.spec, watched)
    hold_ranges(program.exported_program, bundle.spec, watched)
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
    """The file that a bundle was made of, as it is but for notes of an export before.

    Raises:
        BundleError: it is another file than the one that was imported.
        ExportError: it is no ONNX file.
    """
    file = bundle.weights
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf's exceptions share no base but this
        raise ExportError(
            f"an ONNX file in {str(bundle.root)!r}, which has no network in PyTorch",
            got=f"{bundle.manifest.weights}: {reason(error)}",
            fix="import the model itself",
        ) from error
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("tlexport.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


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


def _strip(model: onnx.ModelProto, *, keep_modules: bool) -> None:
    """Take out paths of this machine; without `keep_modules` all that IR 10 brought."""
    for node in model.graph.node:
        kept = [e for e in node.metadata_props if keep_modules and e.key != PRIVATE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if not keep_modules:
        del model.graph.metadata_props[:]
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            del value.metadata_props[:]
        for tensor in model.graph.initializer:
            del tensor.metadata_props[:]


def _readable(model: onnx.ModelProto, wanted: Release) -> onnx.ModelProto:
    """Bring opset and IR version down to what the release reads; nothing is claimed unread.

    Raises:
        ExportError: it cannot be done; the releases that can read the file are named.
    """
    written = opsets_of(model), model.ir_version
    if opset_of(model) > wanted.max_opset:
        try:
            model = onnx.version_converter.convert_version(model, wanted.max_opset)
            onnx.checker.check_model(model)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise _unreadable(wanted, written, reason(error)) from error
    lower(model, wanted)
    opset = opset_of(model)
    if model.ir_version > wanted.max_ir_version:
        if LOWEST_IR.get(opset, model.ir_version) > wanted.max_ir_version or model.functions:
            raise _unreadable(wanted, written, "the IR version cannot be lowered")
        _strip(model, keep_modules=False)
        model.ir_version = wanted.max_ir_version
    for domain, (version, limit) in wanted.too_new(opsets_of(model)).items():
        why = f"its {domain} is of opset {version}, and {limit} is the newest that is read"
        raise _unreadable(wanted, written, why)
    return model


def _unreadable(wanted: Release, written: tuple[dict[str, int], int], why: str) -> ExportError:
    opsets, ir_version = written
    opset = opsets.get("ai.onnx", 0)
    able = readers(opsets, min(ir_version, LOWEST_IR.get(opset, ir_version)))
    return ExportError(
        f"a file that Triton {wanted.triton} reads: opset <= {wanted.max_opset}, "
        f"IR <= {wanted.max_ir_version}",
        got=f"opset {opset}, IR {ir_version} from the exporter ({why})",
        fix=f"pass --triton {able[0].triton} or newer" if able else "no known release reads it",
    )


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


def _describe(model: onnx.ModelProto, bundle: Bundle) -> None:
    facts: dict[str, Any] = {
        "tlexport.spec": bundle.spec,
        "tlexport.labels": bundle.spec.labels,
        "tlexport.weights_sha256": bundle.manifest.weights_sha256,
        "tlexport.version": versions().get("tlexport", "unknown"),
    }
    for key, value in facts.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        model.metadata_props.add(key=key, value=text)


def _write(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Save and check; returns the files below `folder`, the one to open first."""
    if model.ByteSize() <= INLINE_BYTES:
        files: Sequence[str] = ("model.onnx",)
        onnx.save_model(model, folder / "model.onnx")
    else:
        files = ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
        (folder / "model.onnx").mkdir()
        onnx.save_model(
            model,
            folder / files[0],
            save_as_external_data=True,
            location="model.onnx.data",
            all_tensors_to_one_file=True,
        )
    try:
        onnx.checker.check_model(str(folder / files[0]), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "a file that onnx.checker accepts",
            got=reason(error),
            fix="this is a fault of the exporter: try another --triton release",
        ) from error
    return tuple(files)
