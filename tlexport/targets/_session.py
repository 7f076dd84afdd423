"""ONNX Runtime on the CPU, for what a target wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tlexport.environment import cores, spins
from tlexport.errors import ExportError
from tlexport.spec import Tensors
from tlexport.targets._file import large

FATAL_ONLY = 4
CHUNK_BYTES = 200_000_000
"""About what may be taken out of a graph in one go."""

FIRST_CHUNK = 16
FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class Session:
    """A file as it will be served, or with `plain` its graph as it is written."""

    def __init__(self, file: Path, *, plain: bool = False) -> None:
        settings = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        settings.graph_optimization_level = (
            levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_ALL
        )
        settings.intra_op_num_threads = cores()
        settings.inter_op_num_threads = 1
        if not spins():
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = FATAL_ONLY  # its errors come as exceptions, too
        try:
            self._session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise ExportError(
                f"a file that onnxruntime {ort.__version__} loads",
                got=" ".join(str(error).split()),
                fix="export as fp32, or update onnxruntime",
            ) from error
        self._inputs = {
            i.name: FLOATS[i.type] for i in self._session.get_inputs() if i.type in FLOATS
        }
        self.outputs: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}

    def __call__(self, inputs: Tensors, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Answer: arrays by the name of the output; `names` are all of them by default."""
        names = list(self.outputs) if names is None else list(names)
        try:
            answers = self._session.run(names, self._cast(inputs))
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            shapes = {name: list(array.shape) for name, array in inputs.items()}
            raise ExportError(
                f"a file that answers {shapes}",
                got=" ".join(str(error).split()),
                fix="export as fp32, and look with `tlexport verify` whether that answers",
            ) from error
        return dict(zip(names, answers, strict=True))

    def _cast(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Inputs in the floating-point dtypes that the file takes."""
        return {n: a.astype(self._inputs.get(n, a.dtype), copy=False) for n, a in inputs.items()}


class Values:
    """Every floating-point value of a graph, asked of the graph as it is written.

    With `stored`, what every node answers goes through memory in its declared type: ONNX Runtime's
    CPU computes fp16 nodes in fp32, one after the other, and would hide what overflows on a GPU.
    """

    def __init__(self, model: onnx.ModelProto, work: Path, *, stored: bool = False) -> None:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        graph = exposed.graph
        if stored:
            _store(graph)
        del graph.value_info[:]
        known = {output.name for output in graph.output}
        for node in model.graph.node:
            for name in node.output:
                if name and name not in known:
                    known.add(name)
                    graph.output.append(onnx.ValueInfoProto(name=name))
        self._session = Session(save(exposed, work / "exposed.onnx"), plain=True)
        self.types = {
            name: FLOATS[kind] for name, kind in self._session.outputs.items() if kind in FLOATS
        }

    def chunks(self, inputs: Tensors) -> Iterator[dict[str, np.ndarray]]:
        """All of them, a few at a time: a large graph's do not fit together."""
        names, size = list(self.types), FIRST_CHUNK
        while names:
            found = self.ask(inputs, names[:size])
            yield found
            names = names[size:]
            bytes_each = sum(array.nbytes for array in found.values()) / len(found)
            size = max(1, int(CHUNK_BYTES / max(1.0, bytes_each)))

    def ask(self, inputs: Tensors, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of these names."""
        return self._session(inputs, names)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model for one's own use, its weights beside it where they are too large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    beside = path.with_suffix(".data")
    beside.unlink(missing_ok=True)
    if not large(model):
        onnx.save_model(model, path)
        return path
    copy = onnx.ModelProto()  # what is saved beside is taken out of the model
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=beside.name)
    return path


def _store(graph: onnx.GraphProto) -> None:
    """Put an Identity behind every node: no two computations are joined across it."""
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name:
                node.output[place] = f"{name}:computed"
                nodes.append(onnx.helper.make_node("Identity", [node.output[place]], [name]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
