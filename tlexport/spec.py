"""The words every stage shares: tensors and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tlexport.errors import SpecError

Tensors = Mapping[str, np.ndarray]
"""The only currency at a runtime's door: name -> array."""

TRITON_DTYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
"""numpy dtype name -> Triton datatype; `config.pbtxt` writes TYPE_X, and TYPE_STRING for BYTES."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output: `shape` mixes sizes and axis names, e.g. ("batch", 224, 224, 3).

    `legal` is the closed range of legal values (a vocabulary is (0, size - 1)), if there is one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    legal: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in TRITON_DTYPES:
            raise SpecError(
                f"a dtype of {', '.join(TRITON_DTYPES)} for {self.name!r}",
                got=repr(self.dtype),
                fix="declare the tensor with one of these",
            )

    @property
    def batched(self) -> bool:
        """True when the first axis is the symbolic axis "batch"."""
        return bool(self.shape) and self.shape[0] == "batch"

    def check(self, array: np.ndarray) -> None:
        """Refuse an array that is not of this dtype, rank, sizes and range.

        Raises:
            SpecError: naming the first thing that differs.
        """
        declared = f"{self.name!r} as {self.dtype} [{', '.join(map(str, self.shape))}]"
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == size
            for want, size in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != self.dtype:
            raise SpecError(
                declared,
                got=f"{array.dtype.name} [{', '.join(map(str, array.shape))}]",
                fix="convert or reshape the array before asking",
            )
        if self.legal is not None and array.size:
            low, high = array.min(), array.max()
            if not (low >= self.legal[0] and high <= self.legal[1]):
                raise SpecError(
                    f"{self.name!r} within {self.legal[0]:g} .. {self.legal[1]:g}",
                    got=f"values from {low} to {high}",
                    fix="check the preprocessing or the tokenizer that made them",
                )


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is for, what it takes and what it answers; `preprocess` holds numbers only."""

    name: str
    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    preprocess: dict[str, Any] = msgspec.field(default_factory=dict)

    def check(self, inputs: Tensors) -> None:
        """Refuse inputs that are not exactly the declared ones.

        Raises:
            SpecError: a name is missing or unknown, an array differs, or batch sizes disagree.
        """
        declared = {spec.name for spec in self.inputs}
        if set(inputs) != declared:
            raise SpecError(
                f"the inputs {sorted(declared)}",
                got=f"{sorted(inputs)}",
                fix="pass exactly these names",
            )
        for spec in self.inputs:
            spec.check(inputs[spec.name])
        sizes = {spec.name: len(inputs[spec.name]) for spec in self.inputs if spec.batched}
        if len(set(sizes.values())) > 1:
            raise SpecError("one batch size", got=str(sizes), fix="pass as many rows to each input")

    def in_halves(self) -> ModelSpec:
        """The same with float16 wherever it has float32."""
        return msgspec.structs.replace(
            self, inputs=_in_halves(self.inputs), outputs=_in_halves(self.outputs)
        )


def _in_halves(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    halved = {"float32": "float16"}
    return tuple(
        msgspec.structs.replace(spec, dtype=halved.get(spec.dtype, spec.dtype)) for spec in specs
    )


def cast(tensors: Tensors, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Floating-point tensors in the floating-point dtypes of their specs, others as they are.

    A value that float16 cannot hold becomes infinite, as it does on the wire.
    """
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}
    found = dict(tensors)
    for name, array in tensors.items():
        want = dtypes.get(name, array.dtype)
        if array.dtype.kind == want.kind == "f" and array.dtype != want:
            with np.errstate(over="ignore"):
                found[name] = array.astype(want)
    return found


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A question that `verify` asks besides the golden samples: of another length, padded ...

    `inputs` are as the model takes them. Where `same_as` names rows of the golden samples, row
    for row, the answers must be those, whatever the padding. `extreme` are inputs that no model
    is made for (silence, all 255): rounding may do more there, and a precision below float32, for
    which ranges were measured, need only give finite answers.
    """

    name: str
    inputs: dict[str, np.ndarray]
    same_as: tuple[int, ...] = ()
    extreme: bool = False


def rows(tensors: Tensors, index: Any) -> dict[str, np.ndarray]:
    """The chosen rows of every tensor (any numpy index over the batch axis)."""
    return {name: array[index] for name, array in tensors.items()}
