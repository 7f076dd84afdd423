"""NAME:DTYPE[AXES]=LOW..HIGH, as people declare tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tlexport.errors import OptionError
from tlexport.importers import ANY_SIZE, Bounds
from tlexport.spec import TRITON_DTYPES, TensorSpec

FORM = "--input NAME:DTYPE[AXES], such as --input 'pixels:float32[batch,3,224,224]=0..1'"
PATTERN = re.compile(
    r"(?P<name>[^\s:=\[\]]+):(?P<dtype>\w+)\[(?P<axes>[^\]]*)\](?:=(?P<low>.+?)\.\.(?P<high>.+))?"
)
AXIS = re.compile(r"(?:(?P<least>\d+)<=)?(?P<name>[A-Za-z_]\w*)(?:<=(?P<most>\d+))?")
WHOLE = {"uint8": (0.0, 255.0)}
"""Dtypes whose whole range is legal where none is declared."""


def parse(texts: Sequence[str]) -> tuple[tuple[TensorSpec, ...], Bounds]:
    """The declared tensors, and the sizes that their free axes may have.

    Raises:
        OptionError: a text is written otherwise, or a name comes twice.
    """
    tensors: list[TensorSpec] = []
    bounds: Bounds = {}
    for text in texts:
        tensors.append(_tensor(text, bounds))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise OptionError("each input once", got=", ".join(names), fix="leave the second one out")
    return tuple(tensors), bounds


def asked_for(names: Iterable[str]) -> str:
    """How to declare these inputs, to be completed by the user."""
    return " ".join(f"--input '{name}:float32[batch,...]=LOW..HIGH'" for name in names)


def merged(found: Sequence[TensorSpec], texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """What was read off a file, with the ranges and axis names that the user declares for it.

    Raises:
        OptionError: a declared tensor is not there, or is of another dtype, rank or size.
    """
    declared = {tensor.name: tensor for tensor in parse(texts)[0]}
    strange = sorted(set(declared) - {tensor.name for tensor in found})
    if strange:
        raise OptionError(
            f"inputs of the model: {', '.join(map(written, found))}",
            got=", ".join(strange),
            fix="declare these names, or leave --input out: they are read off the file",
        )
    return tuple(_merge(tensor, declared.get(tensor.name)) for tensor in found)


def written(tensor: TensorSpec) -> str:
    """NAME:DTYPE[AXES]=LOW..HIGH of a tensor."""
    legal = "" if tensor.legal is None else "={:g}..{:g}".format(*tensor.legal)
    return f"{tensor.name}:{tensor.dtype}[{','.join(map(str, tensor.shape))}]{legal}"


def _merge(found: TensorSpec, declared: TensorSpec | None) -> TensorSpec:
    if declared is None:
        return found
    same = found.dtype == declared.dtype and len(found.shape) == len(declared.shape)
    if not same or any(
        isinstance(a, int) and a != b for a, b in zip(found.shape, declared.shape, strict=True)
    ):
        raise OptionError(
            f"{written(found)}, as the file has it",
            got=written(declared),
            fix="declare the same dtype and sizes; free axes may be named, and a range given",
        )
    return TensorSpec(
        name=found.name,
        dtype=found.dtype,
        shape=declared.shape,
        legal=declared.legal if declared.legal is not None else found.legal,
    )


def _tensor(text: str, bounds: Bounds) -> TensorSpec:
    match = PATTERN.fullmatch(text.strip())
    if match is None:
        raise OptionError(FORM, got=repr(text), fix="write it so, in quotes for the shell")
    dtype = match["dtype"]
    if dtype not in TRITON_DTYPES or dtype == "object":
        numbers = [name for name in TRITON_DTYPES if name != "object"]
        raise OptionError(
            f"a dtype of {', '.join(numbers)} in --input",
            got=f"{dtype!r} in {text!r}",
            fix="name one of these: float is float32, long is int64, half is float16",
        )
    axes = [axis.strip() for axis in match["axes"].split(",") if axis.strip()]
    shape = tuple(_axis(axis, text, bounds) for axis in axes)
    if not shape or shape[0] not in ("batch", 1):
        raise OptionError(
            f"'batch' as the first axis of {match['name']}",
            got=repr(text),
            fix="write [batch,...]: every input has a row per question; where your network takes "
            "something without, wrap it in a module that repeats or squeezes it",
        )
    return TensorSpec(name=match["name"], dtype=dtype, shape=shape, legal=_legal(match, text))


def _axis(axis: str, text: str, bounds: Bounds) -> int | str:
    if axis.isdigit() and int(axis) > 0:
        return int(axis)
    match = AXIS.fullmatch(axis.replace(" ", ""))
    if match is None:
        raise OptionError(
            "axes that are sizes or names, such as 3, batch, sequence, sequence<=512",
            got=f"{axis!r} in {text!r}",
            fix="name what is free and number what is constant",
        )
    low, high = bounds.get(match["name"], ANY_SIZE)
    low = max(low, int(match["least"] or low))
    high = min(high, int(match["most"] or high))
    if low > high or low < 1:
        raise OptionError(
            f"sizes that an axis {match['name']} can have",
            got=f"from {low} to {high}",
            fix="correct the bounds: the smaller one comes first",
        )
    bounds[match["name"]] = (low, high)
    return match["name"]


def _legal(match: re.Match[str], text: str) -> tuple[float, float] | None:
    if match["low"] is None:
        return WHOLE.get(match["dtype"])
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        low, high = 1.0, 0.0
    if not (-float("inf") < low <= high < float("inf")):
        raise OptionError(
            "a range =LOW..HIGH of two numbers, both legal values",
            got=repr(text),
            fix="write such as =0..1 for floats, =0..30521 for a vocabulary of 30,522",
        )
    return low, high
