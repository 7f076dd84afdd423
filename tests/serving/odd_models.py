"""Building blocks of the broken and the odd repositories that lint and a server are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from serving import small_models as small

FLOAT = TensorProto.FLOAT
Lay = Callable[[Path, str], None]
"""Writes a model of that name, and whatever it needs, into a repository."""


def lays(model=None, config: str | None = small.plain(), file: str = "model.onnx", **files) -> Lay:
    """A model as it is given; `files` are written beside its configuration, "a__b" as a/b."""

    def lay(repository: Path, name: str) -> None:
        graph = small.double() if model is None else model
        folder = small.lay(repository, name, graph, config, file)
        for path, data in files.items():
            place = folder / path.replace("__", "/").replace("_dot_", ".")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    return lay


def then(lay: Lay, change: Callable[[Path], object]) -> Lay:
    """The same, and its folder changed afterwards."""

    def both(repository: Path, name: str) -> None:
        lay(repository, name)
        change(repository / name)

    return both


def no_file(config: str, **files: bytes) -> Lay:
    """A model whose version holds nothing but `files`."""
    return then(lays(config=config, **files), lambda folder: (folder / "1/model.onnx").unlink())


# ------------------------------------------------------------------ ONNX files


def of_domains(opsets, nodes=None, ir_version=10, functions=()):
    """x -> y of [n, 3] with these opset imports (domain, version)."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 3])],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, functions=list(functions)
    )


def node(operator: str, domain: str = "", **attributes):
    return helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)


def function(nodes, opsets):
    """A function `own:F` of a file."""
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_function("own", "F", ["x"], ["y"], nodes, imports)


def without_output_shape():
    model = small.double()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def without_input_shape():
    model = small.double()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def with_sequence():
    """y as ever, and a second output that is a sequence of tensors."""
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["s"]), helper.make_node("Relu", ["x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3])],
        [
            helper.make_tensor_sequence_value_info("s", FLOAT, None),
            helper.make_tensor_value_info("y", FLOAT, ["n", 3]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def biased(ir_version=10, opset=18, listed=False):
    """y = x + bias; the bias may be listed as an input, as all were before IR 4."""
    inputs = [("x", FLOAT, ["n", 3])] + ([("bias", FLOAT, [3])] if listed else [])
    return small.build(
        [("Add", ["x", "bias"], ["y"])],
        inputs,
        [("y", FLOAT, ["n", 3])],
        [("bias", np.ones(3, np.float32))],
        ir_version=ir_version,
        opset=opset,
    )


def outside(location: str, place: str | None = None, *, file: str = "1/model.onnx", **told) -> Lay:
    """`biased()` whose bias lies at `location`; it is written to `place` of the model's folder.

    `told` are offset and length, and `data` other bytes to write.
    """
    data = told.pop("data", np.ones(3, np.float32).tobytes())

    def lay(repository: Path, name: str) -> None:
        model = biased()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        folder = small.lay(repository, name, None, small.plain())
        told_all = {"location": location.format(folder=folder), **told}
        for key, value in told_all.items():
            tensor.external_data.add(key=key, value=str(value))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / file)
        if place is not None:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(data)

    return lay


# ------------------------------------------------------------------ configurations


def warmed(sample: str, model=None, config: str = "") -> Lay:
    """A model with one warm-up sample."""
    more = f'model_warmup {{ name: "w" {sample} }}\n'
    return lays(model, (config or small.plain()) + more)


def given(body: str, name: str = "x") -> str:
    """One input of a warm-up sample."""
    return f'inputs {{ key: "{name}" value {{ {body} }} }}'


ZEROS = "data_type: TYPE_FP32 dims: [ 3 ] zero_data: true"
LABELLED = 'y FP32 3 label_filename: "labels.txt"'

PYTHON = b"""import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())])
            for r in requests
        ]
"""


def step(model: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> str:
    """A step of an ensemble; "@" in a model's name stands for the ensemble's own."""
    maps = [f'input_map {{ key: "{k}" value: "{v}" }}' for k, v in inputs.items()]
    maps += [f'output_map {{ key: "{k}" value: "{v}" }}' for k, v in outputs.items()]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}\n'


ONE = step("@A", {"x": "X"}, {"y": "Y"})
PAIR = {"A": (small.double(), small.plain()), "B": (small.double(), small.plain())}


def ensemble(steps: str, inputs="X FP32 3", outputs="Y FP32 3", members=None, **more) -> Lay:
    """An ensemble and its members, each called as it is and a letter."""
    max_batch, extra = more.get("max_batch", 8), more.get("more", "")

    def lay(repository: Path, name: str) -> None:
        for letter, (model, config) in (PAIR if members is None else members).items():
            small.lay(repository, name + letter, model, config)
        sides = [("input", text) for text in inputs.split("; ")]
        sides += [("output", text) for text in outputs.split("; ")]
        text = f'platform: "ensemble"\nmax_batch_size: {max_batch}\n'
        for side, told in sides:
            tensor, kind, dims, *rest = told.split(" ", 3)
            text += f'{side} {{ name: "{tensor}" data_type: TYPE_{kind} dims: [ {dims} ] '
            text += f"{' '.join(rest)} }}\n"
        text += f"ensemble_scheduling {{ {steps} }}\n{extra}"
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text.replace("@", name))

    return lay
