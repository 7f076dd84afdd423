"""Rules of warm-up samples."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.config import WARMUP
from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import Model, Scope, fits, inside, written

SIZES = {
    **dict.fromkeys(("TYPE_BOOL", "TYPE_UINT8", "TYPE_INT8"), 1),
    **dict.fromkeys(("TYPE_UINT16", "TYPE_INT16", "TYPE_FP16", "TYPE_BF16"), 2),
    **dict.fromkeys(("TYPE_UINT32", "TYPE_INT32", "TYPE_FP32"), 4),
    **dict.fromkeys(("TYPE_UINT64", "TYPE_INT64", "TYPE_FP64"), 8),
}
"""Bytes of an element; a text has its own length before it."""


def warmups(model: Model, scope: Scope) -> Iterator[Finding]:
    """Each sample is a request: it must be one that the model takes."""
    largest = max(1, model.completed.max_batch_size)
    if model.backend == "ensemble":
        return  # none is allowed there
    for place, sample in enumerate(model.config.model_warmup):
        where = ("model_warmup", place)
        if sample.batch_size > largest:
            yield model.finding(
                "warmup-batch",
                (*where, "batch_size"),
                f"a batch of at most {largest}",
                got=str(sample.batch_size),
                fix=f"write batch_size: {largest}",
            ).mended(*model.text.set((*where, "batch_size"), str(largest)))
        if model.complete:
            yield from _inputs(model, where, sample)
        for name, block in sample.inputs.items():
            if block.WhichOneof("input_data_type") == "input_data_file":
                yield from _data(model, where, name, block)
    sizes = [max(1, sample.batch_size) for sample in model.config.model_warmup]
    if sizes and max(sizes) < largest:
        yield model.finding(
            "warmup-largest",
            ("model_warmup",),
            f"a warm-up of the largest batch, {largest}, too",
            got=f"one of {max(sizes)} at most",
            fix=f"add a model_warmup with batch_size: {largest}",
        )


def _inputs(model: Model, where: tuple[str, int], sample: Any) -> Iterator[Finding]:
    known = {block.name: block for block in model.completed.input}
    needed = [name for name, block in known.items() if not block.optional]
    missing = [name for name in needed if name not in sample.inputs]
    unknown = [name for name in sample.inputs if name not in known]
    if missing or unknown:
        yield model.finding(
            "warmup-input",
            (*where, "inputs"),
            f"the model's inputs: {', '.join(known)}",
            got=", ".join(sample.inputs) or "none",
            fix="write one inputs { key: ... value { ... } } for each, and no other",
        )
    for name, block in sample.inputs.items():
        if block.WhichOneof("input_data_type") is None:
            yield model.finding(
                "warmup-data",
                (*where, "inputs"),
                f"zero_data, random_data or input_data_file for {name!r}",
                got="none of these",
                fix="write zero_data: true",
            )
        if name not in known:
            continue
        wanted, dims = tuple(known[name].dims), tuple(block.dims)
        kinds = pb.DataType.Name(known[name].data_type), pb.DataType.Name(block.data_type)
        if -1 in dims or not fits(wanted, dims) or kinds[0] != kinds[1]:
            yield model.finding(
                "warmup-shape",
                (*where, "inputs"),
                f"{kinds[0]} {written(wanted)} for {name!r}"
                + (", its free axes with a size" if -1 in wanted else ""),
                got=f"{kinds[1]} {written(dims)}",
                fix="write the type and the shape of one request, without the batch",
            )


def _data(model: Model, where: tuple[str, int], name: str, block: Any) -> Iterator[Finding]:
    path = Path(f"{model.folder}/{WARMUP}/{block.input_data_file}")
    if not path.is_file():
        yield model.finding(
            "warmup-data",
            (*where, "inputs"),
            f"the data of {name!r} at {WARMUP}/{block.input_data_file}",
            got="no such file",
            fix="put it there, or write zero_data: true instead",
        )
        return
    if not inside(model.folder, path):
        yield model.finding(
            "warmup-path",
            (*where, "inputs"),
            "a file in the model's own folder",
            got=f"{str(block.input_data_file)!r}, which is {str(path.resolve())!r}",
            fix=f"copy it to {model.name}/{WARMUP}/",
        )
        return
    count, kind = math.prod(block.dims), pb.DataType.Name(block.data_type)
    if kind == "TYPE_STRING":
        found, wanted, unit = _texts(path.read_bytes()), count, "texts"
        fine = found == wanted
    else:
        found, wanted, unit = path.stat().st_size, count * SIZES.get(kind, 0), "bytes"
        fine = found >= wanted
    if not fine:
        yield model.finding(
            "warmup-data",
            (*where, "inputs"),
            f"{wanted} {unit} for {kind} {written(block.dims)} of {name!r}",
            got=f"{found} {unit} in {WARMUP}/{block.input_data_file}",
            fix="write the raw bytes of one row; before each text its length as four bytes",
        )


def _texts(data: bytes) -> int:
    """How many texts lie in a file, each with its length before it; -1 where one is cut."""
    count = place = 0
    while place + 4 <= len(data):
        place += 4 + struct.unpack_from("<I", data, place)[0]
        count += 1
    return count if place == len(data) else -1


RULES = (warmups,)
