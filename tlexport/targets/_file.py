"""An ONNX file: fit for a release, described, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx
import onnx.version_converter

from tlexport.bundle import Artifact, Bundle, digest_of
from tlexport.environment import versions
from tlexport.errors import ExportError
from tlexport.serving.releases import Release, oldest_that_reads, readers
from tlexport.targets._domains import lower, opsets_of
from tlexport.targets._reasons import reason

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


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ai.onnx domain that a model imports."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def large(model: onnx.ModelProto) -> bool:
    """Whether its weights must lie beside the graph."""
    return bool(model.ByteSize() > INLINE_BYTES)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in this opset, where it is of an older one.

    Raises:
        ExportError: it cannot be converted.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise ExportError(
            f"a model that can be brought to opset {opset}, the first that holds this precision",
            got=f"opset {opset_of(model)}: {reason(error)}",
            fix="export the original again with a newer opset",
        ) from error


def strip(model: onnx.ModelProto, *, keep_modules: bool) -> None:
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


def readable(model: onnx.ModelProto, wanted: Release) -> onnx.ModelProto:
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
        strip(model, keep_modules=False)
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


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What a file computes in, and what its floating-point inputs and outputs are."""

    precision: str = "fp32"
    io: Literal["fp32", "fp16"] = "fp32"


def artifact(
    model: onnx.ModelProto, bundle: Bundle, folder: Path, form: Form, facts: Mapping[str, Any]
) -> Artifact:
    """Describe, write and check a model below `folder`; `facts` go into the record's options.

    Raises:
        ExportError: onnx.checker refuses what was written.
    """
    describe(model, bundle, form)
    files = write(model, folder)
    opsets = opsets_of(model)
    oldest = oldest_that_reads(opsets, model.ir_version)
    return Artifact(
        target="onnx",
        precision=form.precision,
        io=form.io,
        file=files[0],
        files=files,
        sha256=digest_of(folder, files),
        source_sha256=bundle.manifest.weights_sha256,
        triton_backend="onnxruntime",
        options={
            "opset": opset_of(model),
            "opsets": opsets,
            "ir_version": model.ir_version,
            "triton_oldest": oldest.triton if oldest else None,
            **facts,
        },
        versions=versions(),
    )


def describe(model: onnx.ModelProto, bundle: Bundle, form: Form) -> None:
    """Note what the model is in its metadata, in place of notes of an export before."""
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("tlexport.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    facts: dict[str, Any] = {
        "tlexport.spec": bundle.spec.in_halves() if form.io == "fp16" else bundle.spec,
        "tlexport.labels": bundle.spec.labels,
        "tlexport.weights_sha256": bundle.manifest.weights_sha256,
        "tlexport.version": versions().get("tlexport", "unknown"),
    }
    for key, value in facts.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        model.metadata_props.add(key=key, value=text)


def write(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Save and check; returns the files below `folder`, the one to open first."""
    if not large(model):
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
