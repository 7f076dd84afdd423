"""A session whose inputs and outputs stay on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

NO_GRAPH = "-1"
"""The graph id that has ONNX Runtime neither capture nor replay."""


@dataclass
class _Held:
    """What stays for inputs of one shape: a CUDA graph replays on these very addresses."""

    number: int
    binding: Any
    inputs: dict[str, Any]
    outputs: list[Any]


class BoundSession:
    """Answers as `InferenceSession.run` does, through IO binding, for one thread at a time.

    Inputs are copied into memory that was bound when their shapes first came, and a session with
    `enable_cuda_graph` captures a graph for these shapes and replays it from then on.
    """

    def __init__(self, session: ort.InferenceSession, device: str, number: int) -> None:
        self._session = session
        self._place = (device, number)
        self._held: dict[tuple[Any, ...], _Held] = {}
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs
        self.get_providers = session.get_providers

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs `names`, in their order."""
        key = tuple((name, feeds[name].shape) for name in sorted(feeds))
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._bound(names, feeds)
        for name, value in held.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        held.binding.synchronize_inputs()
        self._session.run_with_iobinding(held.binding, _graph(str(held.number)))
        held.binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in held.outputs]  # on a CPU it is a view

    def _bound(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> _Held:
        """Bind memory for these shapes; those of the outputs are found by asking once without."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        found = self._session.run(list(names), arrays, _graph(NO_GRAPH))
        binding = self._session.io_binding()
        inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array, *self._place)
            for name, array in arrays.items()
        }
        outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, *self._place)
            for array in found
        ]
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return _Held(len(self._held) + 1, binding, inputs, outputs)


def _graph(number: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", number)
    return options
