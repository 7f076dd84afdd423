"""Every value of a graph: the file's, and the original's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils import _pytree as pytree

from tlexport.arithmetic import arithmetic, prepared
from tlexport.errors import ExportError
from tlexport.spec import Tensors

NOT_TENSORS = {"SequenceConstruct", "SplitToSequence", "Optional", "SequenceEmpty"}
FATAL_ONLY = 4
LARGE = 1e30
"""Values beyond are marks, such as the -3.4e38 of an attention mask: infinity is no overflow."""
CHOOSING = {"Where", "Max", "Min", "Concat", "Expand", "Gather", "Pad", "Slice", "Reshape"}
"""Operators that hand on what they are given: an infinity among it was written down as one."""


def of_file(file: Path, model: onnx.ModelProto, question: Tensors) -> dict[str, np.ndarray]:
    """Every tensor that the file's nodes compute, by name, on ONNX Runtime without optimisation.

    Raises:
        ExportError: it does not run so.
    """
    names = [
        name
        for node in model.graph.node
        if node.op_type not in NOT_TENSORS
        for name in node.output
        if name
    ]
    shown = {value.name for value in model.graph.output}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    new = [onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in shown]
    probe.graph.output.extend(new)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = FATAL_ONLY
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(file.parent)
    )
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        found = session.run(names, dict(question))
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        raise ExportError(
            "a file whose every value ONNX Runtime shows",
            got=" ".join(str(error).split()),
            fix="find the node by hand",
        ) from error
    return dict(zip(names, found, strict=True))


def overflows(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> bool:
    """Whether a node makes NaN or plus infinity of numbers that are none and no marks either.

    Minus infinity alone is how a mask is written.
    """
    if node.op_type in CHOOSING:
        return False
    given = [values[name] for name in node.input if name in values]
    given = [array for array in given if array.dtype.kind == "f"]
    if not all((np.abs(array.astype(np.float64)) < LARGE).all() for array in given):
        return False
    made = [values[name] for name in node.output if name in values]
    return any(
        bool((np.isnan(array) | np.isposinf(array)).any())
        for array in made
        if array.dtype.kind == "f"
    )


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps every tensor by the name of its node."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found: dict[str, np.ndarray] = {}
        self.modules: dict[str, str] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call it; strides may be others than when it was traced, so that a view must be copied."""
        view = torch.ops.aten.view.default
        return super().call_function(
            torch.ops.aten.reshape.default if target is view else target, args, kwargs
        )

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run it, and keep what it gave where that is one tensor."""
        try:
            answer = super().run_node(n)
        except (RuntimeError, TypeError) as error:
            raise ExportError(
                "a traced network that runs in another arithmetic",
                got=f"{n.name}: {str(error).strip().splitlines()[0]}",
                fix="find the node by hand",
            ) from error
        if isinstance(answer, torch.Tensor) and n.op == "call_function":
            self.found[n.name] = answer.detach().to("cpu").numpy().copy()
            stack = n.meta.get("nn_module_stack") or {}
            path = list(stack.values())[-1] if stack else ("", "")
            self.modules[n.name] = _module(path)
        return answer


def _module(entry: Sequence[Any]) -> str:
    path, kind = entry[0], entry[1]
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path} ({name.rpartition('.')[2]})" if path else name.rpartition(".")[2]


def of_program(
    program: torch.export.ExportedProgram,
    question: Sequence[torch.Tensor],
    names: Sequence[str],
    how: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor that a traced network computes, by the name of its node; and its module.

    `names` are those of the outputs, `how` is an arithmetic, or None for the network's own.
    """
    graph = copy.deepcopy(program.module(check_guards=False))  # it shares the program's weights
    prepared(graph, how or "")
    assert isinstance(graph, torch.fx.GraphModule)
    recorder = _Recorder(graph)
    with torch.no_grad(), arithmetic(how):
        answer = recorder.run(*question)
    answers = pytree.tree_leaves(answer)
    found = {n: a.numpy() for n, a in zip(names, answers, strict=True)} | recorder.found
    return found, recorder.modules
