"""One connection to a Triton server: what travels on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from tritonclient.utils import serialize_byte_tensor

from tlexport.errors import ServerError
from tlexport.serving.client import Client
from tlexport.serving.shared_memory import Region
from tlexport.spec import TRITON_DTYPES, ModelSpec, Tensors, TensorSpec

UNKNOWN_REGION = "Unable to find shared memory region"


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model in service and what is known of it; `dtypes` are numpy's, by tensor."""

    name: str
    version: str
    facts: dict[str, Any]
    dtypes: dict[str, str] = {}


class Line:
    """A connection: arrays travel in the messages."""

    def __init__(self, client: Client, spec: ModelSpec, model: Model) -> None:
        self.client = client
        self.spec = spec
        self.model = model
        self._outputs = [client.output(tensor.name) for tensor in spec.outputs]

    def ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Ask once."""
        filled = []
        for tensor in self.spec.inputs:
            array = inputs[tensor.name].reshape(self._shape(tensor, inputs[tensor.name].shape))
            entry = self.client.input(tensor.name, array.shape, TRITON_DTYPES[tensor.dtype])
            entry.set_data_from_numpy(array)
            filled.append(entry)
        result = self.client.infer(self.model.name, self.model.version, filled, self._outputs)
        return {tensor.name: self._told(tensor, result) for tensor in self.spec.outputs}

    def _shape(self, tensor: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape on the wire: a server that batches takes and gives [batch] as [batch, 1]."""
        scalar = tensor.batched and len(tensor.shape) == 1 and self.model.facts["max_batch"] > 0
        return (*shape, 1) if scalar and len(shape) == 1 else shape

    def _told(self, tensor: TensorSpec, result: Any) -> Any:
        """An output as it is declared."""
        array = result.as_numpy(tensor.name)
        if array is not None and array.ndim == 2 and len(tensor.shape) == 1 and tensor.batched:
            return array.reshape(len(array)) if array.shape[1] == 1 else array
        return array

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


class SharedLine(Line):
    """A connection: arrays lie in memory of a `kind` shared with the server, in and out.

    Outputs whose size is not known beforehand (texts, free axes) travel in the message.
    """

    def __init__(
        self,
        client: Client,
        spec: ModelSpec,
        model: Model,
        kind: Callable[[Client, int], Region],
    ) -> None:
        super().__init__(client, spec, model)
        self._kind = kind
        self._incoming: Region | None = None
        self._outgoing: Region | None = None

    def ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Ask once; a server that was started anew is told of the memory again."""
        try:
            return self._ask(inputs)
        except ServerError as error:
            if UNKNOWN_REGION not in error.got:
                raise
        self._incoming = self._outgoing = None
        return self._ask(inputs)

    def _ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        filled = self._fill(inputs)
        batch = max((len(inputs[t.name]) for t in self.spec.inputs if t.batched), default=0)
        shapes = {tensor.name: _known_shape(tensor, batch) for tensor in self.spec.outputs}
        sizes = {
            tensor.name: int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize
            for tensor in self.spec.outputs
            if (shape := shapes[tensor.name]) is not None
        }
        self._outgoing = self._room(self._outgoing, sum(map(_padded, sizes.values())))
        outputs, places, offset = [], {}, 0
        for tensor in self.spec.outputs:
            output = self.client.output(tensor.name)
            if tensor.name in sizes:
                size = sizes[tensor.name]
                output.set_shared_memory(self._outgoing.name, size, offset)
                places[tensor.name] = offset
                offset += _padded(size)
            outputs.append(output)
        result = self.client.infer(self.model.name, self.model.version, filled, outputs)
        self._outgoing.fetch()
        answers = {}
        for tensor in self.spec.outputs:
            shape = shapes[tensor.name]
            if shape is None:
                answers[tensor.name] = self._told(tensor, result)
                continue
            view = self._outgoing.view(np.dtype(tensor.dtype), shape, places[tensor.name])
            answers[tensor.name] = view.copy()
        return answers

    def close(self) -> None:
        """Have the server let go of the memory, then close the connection."""
        try:
            for region in (self._incoming, self._outgoing):
                if region is not None:
                    region.close()
        finally:
            super().close()

    def _fill(self, inputs: Tensors) -> list[Any]:
        packed = {
            tensor.name: serialize_byte_tensor(inputs[tensor.name]).item()
            for tensor in self.spec.inputs
            if tensor.dtype == "object"
        }
        sizes = {
            tensor.name: len(packed.get(tensor.name, b"")) or inputs[tensor.name].nbytes
            for tensor in self.spec.inputs
        }
        self._incoming = self._room(self._incoming, sum(map(_padded, sizes.values())))
        filled, offset = [], 0
        for tensor in self.spec.inputs:
            array, size = inputs[tensor.name], sizes[tensor.name]
            if tensor.name in packed:
                self._incoming.write_bytes(packed[tensor.name], offset)
            else:
                self._incoming.write(array, offset)
            shape = self._shape(tensor, array.shape)
            entry = self.client.input(tensor.name, shape, TRITON_DTYPES[tensor.dtype])
            entry.set_shared_memory(self._incoming.name, size, offset)
            filled.append(entry)
            offset += _padded(size)
        self._incoming.send()
        return filled

    def _room(self, region: Region | None, size_bytes: int) -> Region:
        """A region of at least this size; a smaller one is given back first."""
        if region is not None and region.size_bytes >= size_bytes:
            return region
        if region is not None:
            region.close()
        return self._kind(self.client, size_bytes)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 64) * 64


def _known_shape(tensor: TensorSpec, batch: int) -> tuple[int, ...] | None:
    shape = [batch if size == "batch" else size for size in tensor.shape]
    if tensor.dtype == "object" or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))
