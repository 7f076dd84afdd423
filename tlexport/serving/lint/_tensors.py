"""Rules of inputs and outputs: configuration against file."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._graph import Graph, Tensor
from tlexport.serving.lint._model import DEFAULT_MAX_BATCH, Model, Scope, fits, written
from tlexport.serving.lint._text import Edit

Blocks = list[tuple[str, int, Any]]
"""(side, place, block) of every tensor that is written in the configuration."""


def _blocks(model: Model) -> Blocks:
    sides = (("input", model.config.input), ("output", model.config.output))
    return [(side, place, block) for side, each in sides for place, block in enumerate(each)]


def _type(block: Any) -> str:
    return str(pb.DataType.Name(block.data_type))


def described(model: Model, scope: Scope) -> Iterator[Finding]:
    """What a tensor's block must hold by itself."""
    for side, place, block in _blocks(model):
        where = (side, place)
        faults = []
        if not block.name:
            faults.append(("name", "a name", "none"))
        if _type(block) == "TYPE_INVALID":
            faults.append(("data_type", "a data_type", "none"))
        if not block.dims:
            faults.append(("dims", "dims; a scalar's are [ 1 ]", "none"))
        if any(size < 1 and size != -1 for size in block.dims):
            faults.append(("dims", "sizes of 1 or more, or -1", written(block.dims)))
        images = side == "input" and block.format != pb.ModelInput.FORMAT_NONE
        if images and len(block.dims) != 3:
            faults.append(("format", "three dims with a format of images", written(block.dims)))
        for field, expected, got in faults:
            yield model.finding(
                "tensor-described",
                (*where, field),
                f"{expected} for {side} {block.name or place!r}",
                got=got,
                fix="write what the model has: `tlexport package` does",
            )
        yield from _reshaped(model, side, place, block)


def _reshaped(model: Model, side: str, place: int, block: Any) -> Iterator[Finding]:
    if not block.HasField("reshape"):
        return
    dims, shape = list(block.dims), list(block.reshape.shape)
    scalar = not shape and model.completed.max_batch_size == 0
    same = math.prod(size for size in dims if size != -1) == math.prod(s for s in shape if s != -1)
    free = dims.count(-1) == shape.count(-1)
    if scalar or not (same and free):
        yield model.finding(
            "reshape",
            (side, place, "reshape"),
            "a reshape of as many elements as dims, and not to a scalar without batching",
            got=f"{written(dims)} to {written(shape)}",
            fix="write dims: [ 1 ] and no reshape for a scalar; else keep the elements",
        )


def listed(model: Model, scope: Scope) -> Iterator[Finding]:
    """Names: those the file has, each once, and every input."""
    for _, graph in model.whole[-1:]:
        known = {"input": {**graph.inputs, **graph.offered}, "output": graph.outputs}
        controls = _controls(model)
        given: dict[str, list[str]] = {"input": [], "output": []}
        for side, _, block in _blocks(model):
            given[side].append(block.name)
        missing = {
            side: [n for n in names if n not in given[side] and n not in controls]
            for side, names in (("input", graph.inputs), ("output", graph.outputs))
        }
        if not model.config.input:
            missing["input"] = []
        for side, place, block in _blocks(model):
            if block.name and block.name not in known[side]:
                yield _unknown(model, (side, place), known[side], missing[side])
            if block.name in given[side][:place]:
                yield model.finding(
                    "tensor-twice",
                    (side, place, "name"),
                    f"each {side} once",
                    got=f"{block.name!r} again",
                    fix="leave this block out",
                ).mended(*_without(model, side, place))
        renamed = _strange(model, known["input"]) if len(missing["input"]) == 1 else []
        for name in missing["input"] if not renamed else []:
            yield _missing(model, name, graph.inputs[name])


def _strange(model: Model, known: dict[str, Tensor]) -> list[str]:
    return [block.name for block in model.config.input if block.name not in known]


def _unknown(
    model: Model, where: tuple[str, int], known: dict[str, Tensor], missing: list[str]
) -> Finding:
    side, place = where
    name = getattr(model.config, side)[place].name
    near = difflib.get_close_matches(name, known, 1)
    found = model.finding(
        "tensor-unknown",
        (side, place, "name"),
        f"an {side} of the model: {', '.join(known)}",
        got=f"{name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        fix=f'write name: "{near[0]}"' if near else "name one of these, or leave the block out",
    )
    if near and near == missing:
        return found.mended(*model.text.set((side, place, "name"), f'"{near[0]}"'))
    return found


def _without(model: Model, side: str, place: int) -> list[Edit]:
    return [Edit(field.start, field.end, "") for field in model.text.all((side, place))]


def _missing(model: Model, name: str, tensor: Tensor) -> Finding:
    dims = tensor.shape[1:] if model.completed.max_batch_size > 0 else tensor.shape
    block = f'input {{ name: "{name}" data_type: {tensor.dtype} dims: {_text(dims or (1,))} }}'
    found = model.finding(
        "input-missing",
        ("input",),
        f"every input of the model, {name!r} as well",
        got=", ".join(block.name for block in model.config.input),
        fix=f"write {block}",
    )
    return found.mended(model.text.add((), block)) if tensor.dtype else found


def _controls(model: Model) -> set[str]:
    return {control.name for control in model.config.sequence_batching.control_input}


def fitting(model: Model, scope: Scope) -> Iterator[Finding]:
    """Types and shapes against the file, for every version that is served."""
    for number, graph in model.whole:
        known = {"input": {**graph.inputs, **graph.offered}, "output": graph.outputs}
        for side, place, block in _blocks(model):
            tensor = known[side].get(block.name)
            if tensor is None or _type(block) == "TYPE_INVALID" or not block.dims:
                continue
            if _type(block) != tensor.dtype and (tensor.sure or tensor.dtype is not None):
                yield _type_finding(model, side, place, tensor)
            elif tensor.dtype is not None:
                yield from _shape_findings(model, side, place, tensor)
        if number == model.whole[-1][0]:
            yield from _first_axes(model, graph)


def _type_finding(model: Model, side: str, place: int, tensor: Tensor) -> Finding:
    block = getattr(model.config, side)[place]
    found = model.finding(
        "tensor-dtype",
        (side, place, "data_type"),
        f"{tensor.dtype or 'a type that the backend serves'} for {side} {block.name!r}",
        got=_type(block) + ("" if tensor.dtype else ", and something else in the model"),
        fix=f"write data_type: {tensor.dtype}"
        if tensor.dtype
        else "let the model cast it to FP32, or leave an output out",
    )
    if tensor.dtype is None:
        return found
    return found.mended(*model.text.set((side, place, "data_type"), tensor.dtype))


def _shape_findings(model: Model, side: str, place: int, tensor: Tensor) -> Iterator[Finding]:
    block = getattr(model.config, side)[place]
    batching = model.completed.max_batch_size > 0
    if batching and tensor.shape[:1] != (-1,):
        return  # `first-axis` says so
    dims = tuple(block.reshape.shape if block.HasField("reshape") else block.dims)
    wanted = tensor.shape[1:] if batching else tensor.shape
    if not wanted and not batching:
        fine = all(size == 1 for size in dims)
        wanted = (1,)
    elif side == "input":
        fine = len(dims) == len(wanted) and all(
            size in (-1, given) for size, given in zip(wanted, dims, strict=True)
        )
    elif tensor.sure:
        fine = dims == wanted
    else:
        fine = fits(dims, wanted) or not wanted
    if fine:
        return
    what = "reshape" if block.HasField("reshape") else "dims"
    found = model.finding(
        "tensor-dims",
        (side, place, what),
        f"{what} {written(wanted)} for {side} {block.name!r}, as the model has",
        got=written(dims),
        fix=f"write dims: {_text(wanted)}" if what == "dims" else "make it the model's shape",
    )
    if what == "dims" and tensor.sure:
        found = found.mended(*model.text.set((side, place, "dims"), _text(wanted or (1,))))
    yield found


def _text(dims: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, dims))} ]"


def _first_axes(model: Model, graph: Graph) -> Iterator[Finding]:
    """With batching every tensor that is listed begins with a free axis."""
    if model.completed.max_batch_size == 0:
        return
    sides = {"input": {**graph.inputs, **graph.offered}, "output": graph.outputs}
    for side, known in sides.items():
        blocks = getattr(model.completed, side)
        for place, block in enumerate(blocks):
            tensor = known.get(block.name)
            if tensor is None or tensor.dtype is None or tensor.shape[:1] == (-1,):
                continue
            if tensor.sure or tensor.shape:
                yield model.finding(
                    "first-axis",
                    (side, place) if getattr(model.config, side) else ("max_batch_size",),
                    f"a free first axis of {side} {block.name!r}, to be batched",
                    got=f"{written(tensor.shape)} in the model, and max_batch_size "
                    f"{model.completed.max_batch_size}",
                    fix="export it with a free batch axis; or write max_batch_size: 0 and the "
                    "model's whole shape into dims",
                )


def optional(model: Model, scope: Scope) -> Iterator[Finding]:
    """Optional inputs: none where batches are made, and only what has a value in the file."""
    for place, block in enumerate(model.config.input):
        where = ("input", place, "optional")
        if not block.optional:
            continue
        if model.config.max_batch_size > 0 and model.backend == "onnxruntime":
            yield model.finding(
                "optional-batched",
                where,
                "no optional inputs with batching",
                got=f"optional input {block.name!r} and max_batch_size "
                f"{model.config.max_batch_size}",
                fix="write max_batch_size: 0, or leave optional out",
            )
        elif any(block.name in graph.inputs for _, graph in model.whole):
            yield model.finding(
                "optional-batched",
                where,
                "only inputs that have a value in the file as optional ones",
                got=f"{block.name!r}, which the model needs",
                fix="leave optional out",
            ).mended(*model.text.set(where, "false"))


def completed(model: Model, scope: Scope) -> Iterator[Finding]:
    """What the server adds on its own where inputs or outputs are not written."""
    config = model.config
    if not model.whole or (config.input and config.output):
        return
    largest = model.completed.max_batch_size
    adds = "inputs and outputs"
    if largest and not config.max_batch_size:
        adds += f", max_batch_size {DEFAULT_MAX_BATCH} and dynamic_batching"
    elif largest > 1 and not config.HasField("dynamic_batching"):
        adds += ", and dynamic_batching"
    yield model.finding(
        "completed",
        model.config_path,
        "a whole configuration: what is served is then what is written",
        got=f"no {'input' if not config.input else 'output'}: the server adds {adds}",
        fix="write them out: `tlexport package` does",
    )


RULES = (described, listed, fitting, optional, completed)
