"""Small ONNX models and their Triton configurations, to be laid into a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tlexport.spec import TRITON_DTYPES

DTYPES = [name for name in TRITON_DTYPES if name != "object"]


def build(nodes, inputs, outputs, initializers=(), *, ir_version: int = 10, opset: int = 18):
    """A model; a tensor is (name, TensorProto type, shape), an initializer (name, array)."""
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "small",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def double(shape=("batch", 3), out_shape=None, **more):
    """y = x + x."""
    return build(
        [("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, list(shape))],
        [("y", TensorProto.FLOAT, list(out_shape or shape))],
        **more,
    )


def lay(repository: Path, name: str, model, config: str | None, file: str = "model.onnx") -> Path:
    """Write <repository>/<name>/1/<file> and, unless None, config.pbtxt; the model's folder."""
    place = repository / name / "1" / file
    place.parent.mkdir(parents=True)
    if isinstance(model, bytes):
        place.write_bytes(model)
    elif model is not None:
        onnx.save(model, place)
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)
    return repository / name


def config(
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    max_batch: int = 8,
    more: str = "",
    instances: int = 1,
) -> str:
    """A whole configuration; a tensor is "NAME TYPE DIMS [more]", DIMS as "3,-1"."""

    def block(side: str, text: str) -> str:
        name, kind, dims, *rest = text.split(" ", 3)
        return (
            f'{side} {{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}] {" ".join(rest)} }}\n'
        )

    return (
        f'backend: "onnxruntime"\nmax_batch_size: {max_batch}\n'
        + "".join(block("input", text) for text in inputs)
        + "".join(block("output", text) for text in outputs)
        + f"instance_group {{ kind: KIND_CPU count: {instances} }}\n"
        + parameters({"intra_op_thread_count": "1"})
        + more
    )


def parameters(values: dict[str, str]) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in values.items()
    )


def plain(**more) -> str:
    """The configuration of `double()`."""
    return config(["x FP32 3"], ["y FP32 3"], **more)


DELAYED = "dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 300000 }\n"
"""Waits long enough that requests sent together are joined."""


def lay_all(repository: Path) -> None:
    """The models of the shared server."""
    types = [getattr(TensorProto, _proto(name)) for name in DTYPES]
    lay(
        repository,
        "types",
        build(
            [("Identity", [f"in_{n}"], [f"out_{n}"]) for n in DTYPES],
            [(f"in_{n}", t, ["batch", 2]) for n, t in zip(DTYPES, types, strict=True)],
            [(f"out_{n}", t, ["batch", 2]) for n, t in zip(DTYPES, types, strict=True)],
        ),
        config(
            [f"in_{n} {TRITON_DTYPES[n]} 2" for n in DTYPES],
            [f"out_{n} {TRITON_DTYPES[n]} 2" for n in DTYPES],
        ),
    )
    lay(
        repository,
        "text",
        build(
            [("Identity", ["x"], ["y"])],
            [("x", TensorProto.STRING, ["batch", 2])],
            [("y", TensorProto.STRING, ["batch", 2])],
        ),
        config(["x STRING 2"], ["y STRING 2"], more=DELAYED),
    )
    lay(repository, "scalar", double(()), config(["x FP32 1"], ["y FP32 1"], max_batch=0))
    lay(
        repository,
        "column",
        double(("batch",)),
        config(["x FP32 1 reshape {}"], ["y FP32 1 reshape {}"], max_batch=4),
    )
    free = ("batch", "width")
    lay(
        repository,
        "pair",
        build(
            [("Add", ["a", "b"], ["sum"]), ("Sub", ["a", "b"], ["rest"])],
            [("a", TensorProto.FLOAT, free), ("b", TensorProto.FLOAT, free)],
            [("sum", TensorProto.FLOAT, free), ("rest", TensorProto.FLOAT, free)],
        ),
        config(["a FP32 -1", "b FP32 -1"], ["sum FP32 -1", "rest FP32 -1"], more=DELAYED),
    )
    lay(repository, "double", double(), plain(more=DELAYED))
    lay(
        repository,
        "pick",
        build(
            [("Gather", ["table", "x"], ["y"])],
            [("x", TensorProto.INT64, ["batch", 1])],
            [("y", TensorProto.FLOAT, ["batch", 1])],
            [("table", np.arange(5, dtype=np.float32))],
        ),
        config(["x INT64 1"], ["y FP32 1"], more=DELAYED),
    )
    lay(
        repository,
        "offered",
        build(
            [("Add", ["x", "bias"], ["y"])],
            [("x", TensorProto.FLOAT, [3]), ("bias", TensorProto.FLOAT, [3])],
            [("y", TensorProto.FLOAT, [3])],
            [("bias", np.full(3, 10, np.float32))],
        ),
        config(["x FP32 3", "bias FP32 3 optional: true"], ["y FP32 3"], max_batch=0),
    )
    lay(
        repository,
        "renamed",
        double(),
        plain(more='default_model_filename: "net.onnx"\n'),
        "net.onnx",
    )
    tuned = {
        "execution_mode": "1",
        "inter_op_thread_count": "1",
        "enable_mem_arena": "false",
        "enable_mem_pattern": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
    }
    lay(
        repository,
        "tuned",
        double(),
        plain(
            instances=2,
            more=parameters({k: v for k, v in tuned.items() if "arena_shrinkage" not in k})
            + "optimization { graph { level: -1 } execution_accelerators { "
            'gpu_execution_accelerator [ { name: "tensorrt" } ] } }\n',
        ),
    )
    lay(
        repository,
        "steps",
        build(
            [("Add", ["x", "start"], ["y"])],
            [("x", TensorProto.FLOAT, ["batch", 1]), ("start", TensorProto.FLOAT, ["batch", 1])],
            [("y", TensorProto.FLOAT, ["batch", 1])],
        ),
        config(
            ["x FP32 1"],
            ["y FP32 1"],
            more='sequence_batching { control_input [ { name: "start" control [ { kind: '
            "CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ] }\n",
        ),
    )


def _proto(numpy_name: str) -> str:
    special = {"float32": "FLOAT", "float64": "DOUBLE", "bool": "BOOL"}
    return special.get(numpy_name, numpy_name.upper())
