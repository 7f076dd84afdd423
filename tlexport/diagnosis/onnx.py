"""What an ONNX file shows of its own faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from tlexport.bundle import Artifact, Bundle
from tlexport.diagnosis import Fault
from tlexport.diagnosis._nodes import module_of, named
from tlexport.diagnosis._weights import differing
from tlexport.errors import ExportError
from tlexport.reports import Cause, Walk
from tlexport.spec import ModelSpec, Tensors, TensorSpec, cast, rows

RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
LISTED = 3


def faults(bundle: Bundle, artifact: Artifact) -> list[Fault]:
    """Faults that can be seen without a run: data, axes, training mode, weights, labels."""
    file = bundle.artifact_file(artifact)
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base but this
        return [_fault("corrupt-file", f"{file.name} is no whole ONNX file: {error}")]
    found = list(_external(model, file))
    if found:  # nothing more can be read
        return found
    model = onnx.load(file)
    found += _axes(bundle.spec_of(artifact), model)
    found += _training(model)
    found += _labels(bundle, model)
    found += _weights(bundle, artifact, model)
    found += _overflow(bundle, artifact, model)
    return found


def walk(
    bundle: Bundle, artifact: Artifact, question: Tensors, limits: tuple[float, float]
) -> Walk:
    """The file's graph against the original's, see `_walk.walk`; it needs torch."""
    from tlexport.diagnosis import _walk

    return _walk.walk(bundle, artifact, question, limits)


def _fault(name: str, told: str, fix: str = "export again", *, deadly: bool = False) -> Fault:
    return Fault(cause=Cause(name=name, told=told, fix=fix), deadly=deadly)


def _external(model: onnx.ModelProto, file: Path) -> Iterator[Fault]:
    """Data files that are missing, too short, or outside the file's folder."""
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        try:
            size = int(entry.get("length", 0)) or _bytes(tensor)
            location, end = entry["location"], int(entry.get("offset", 0)) + size
        except (KeyError, ValueError) as error:
            yield _fault("external-data", f"where {tensor.name!r} lies is told wrongly: {error}")
            continue
        needed[location] = max(needed.get(location, 0), end)
    for location, size in needed.items():
        data = file.parent / location
        if not data.resolve().is_relative_to(file.parent.resolve()):
            yield _fault("external-data", f"the weights lie outside the folder, in {location!r}")
        elif not data.is_file():
            yield _fault("external-data", f"the data file {location!r} is missing")
        elif data.stat().st_size < size:
            yield _fault(
                "external-data",
                f"the data file {location!r} is cut short: {data.stat().st_size} bytes of {size}",
            )


def _bytes(tensor: onnx.TensorProto) -> int:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize


def _axes(declared: ModelSpec, model: onnx.ModelProto) -> Iterator[Fault]:
    """Axes that are declared as free and constants in the file."""
    for specs, values in (
        (declared.inputs, model.graph.input),
        (declared.outputs, model.graph.output),
    ):
        by_name = {value.name: value for value in values}
        wanted = [f"{spec.name} {spec.dtype} of rank {len(spec.shape)}" for spec in specs]
        written = [_written(value) for value in values]
        if sorted(wanted) != sorted(written):
            yield _fault(
                "signature",
                f"the file has {', '.join(written)} where the bundle has {', '.join(wanted)}",
            )
        for spec in specs:
            if spec.name in by_name:
                yield from _constant(spec, by_name[spec.name])


def _written(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        return f"{value.name}, which is no tensor or of no type"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{value.name} {dtype} of rank {len(tensor.shape.dim)}"


def _constant(spec: TensorSpec, value: onnx.ValueInfoProto) -> Iterator[Fault]:
    sizes = value.type.tensor_type.shape.dim
    for place, (want, size) in enumerate(zip(spec.shape, sizes, strict=False)):
        if isinstance(want, str) and size.HasField("dim_value"):
            yield _fault(
                "constant-axis",
                f"axis {place} of {spec.name!r}, {want!r}, is the constant {size.dim_value} in "
                "the file",
                "export with that axis dynamic",
            )


def _training(model: onnx.ModelProto) -> Iterator[Fault]:
    """Operators that behave as in training, or draw at random."""
    constants = _constants(model)
    norms, drops, random = [], [], []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and _attribute(node, "training_mode"):
            norms.append(named(node))
        mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        if mode and bool(constants.get(mode, np.array(True))):
            drops.append(named(node))
        if node.op_type in RANDOM:
            random.append(named(node))
    evaluate = "call .eval() on the network before it is exported"
    if norms:
        yield _fault(
            "training-mode", f"BatchNormalization in training mode: {_few(norms)}", evaluate
        )
    if drops:
        yield _fault("training-mode", f"Dropout in training mode: {_few(drops)}", evaluate)
    if random:
        yield _fault(
            "random",
            f"operators that draw at random: {_few(random)}",
            f"{evaluate}, and draw nothing in forward()",
        )


def _labels(bundle: Bundle, model: onnx.ModelProto) -> Iterator[Fault]:
    """Labels that the file carries, where it does, and the bundle's."""
    for entry in model.metadata_props:
        if entry.key != "tlexport.labels":
            continue
        try:
            written = tuple(msgspec.json.decode(entry.value, type=list[str]))
        except msgspec.DecodeError as error:
            yield _fault("labels", f"the labels in the file cannot be read: {error}", deadly=True)
            continue
        if written != bundle.spec.labels:
            yield _fault(
                "labels",
                f"the file was written for the labels {', '.join(written[:8])}; the "
                f"bundle's are {', '.join(bundle.spec.labels[:8])}",
                deadly=True,
            )


def _weights(bundle: Bundle, artifact: Artifact, model: onnx.ModelProto) -> Iterator[Fault]:
    """Weights that are not finite, or not the bundle's."""
    arrays = _constants(model)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            yield _fault("not-finite", f"{name} holds NaN", "train or import again")
    if artifact.precision != "fp32" or not bundle.manifest.weights.endswith(".safetensors"):
        return
    compared, told = differing(bundle, arrays)
    if told:
        share = f"{len(told)} of {compared} weights" if len(told) > 1 else "one weight"
        yield _fault(
            "weights",
            f"{share} of the file {'are' if len(told) > 1 else 'is'} not the bundle's: "
            f"{'; '.join(told[:LISTED])}{' ...' if len(told) > LISTED else ''}",
            "export again: the file is of other weights (another epoch?) or damaged",
            deadly=True,
        )


def _overflow(bundle: Bundle, artifact: Artifact, model: onnx.ModelProto) -> Iterator[Fault]:
    """Half-precision values that overflow on a golden sample.

    ONNX Runtime computes many of them in float32 on a CPU, and then no answer shows it; a GPU does
    not.
    """
    if artifact.io != "fp16" and not any(_makes_half(node) for node in model.graph.node):
        return
    from tlexport.diagnosis._values import of_file, overflows  # torch is imported there

    question = rows(bundle.golden().inputs, slice(0, 1))
    question = cast(question, bundle.spec_of(artifact).inputs)
    try:
        values = of_file(bundle.artifact_file(artifact), model, question)
    except ExportError as error:
        yield _fault("overflow-unknown", f"whether half precision overflows: {error.got}")
        return
    told = [named(n) + _at(n, values) for n in model.graph.node if overflows(n, values)]
    if told:
        yield _fault(
            "overflow",
            f"values of half precision overflow: {_few(told)}",
            "keep these layers in float32: `tlexport export --precision fp16` finds such",
            deadly=True,
        )


def _makes_half(node: onnx.NodeProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    return node.op_type == "Cast" and any(a.name == "to" and a.i == half for a in node.attribute)


def _at(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> str:
    """The module a node came from, and the largest value it was given."""
    given = [np.abs(values[name]) for name in node.input if name in values]
    sizes = [
        array[np.isfinite(array)].max() for array in given if array.dtype.kind == "f" and array.size
    ]
    largest = f" from values up to {max(sizes):.3g}" if sizes else ""
    return (f" of {module_of(node)}" if module_of(node) else "") + largest


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
