"""bf16: the weights alone, for the CPU computes in fp32."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
import torch
from onnx import TensorProto, numpy_helper

from tlexport.errors import ExportError
from tlexport.targets._file import raised
from tlexport.targets._graph import named
from tlexport.targets._lowering import Lowered, Wish, error_of
from tlexport.targets._session import Session, save

LEAST = 1024
"""Elements of a constant that is worth rounding: the others are biases, scales and shapes."""

OLDEST_OPSET = 13
"""The first whose Cast knows bf16."""


class Brain:
    """An fp32 model whose weights are stored as bf16; the one form is "weights".

    ONNX Runtime's CPU has no bf16 kernels (MatMul, Add, Conv, Relu: none is implemented), and
    Triton's ONNX backend takes no bf16 tensors. So the file is half as large, the weights become
    fp32 once, when it is loaded, and it runs as fast as fp32 does.
    """

    forms: tuple[str, ...] = ("weights",)

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._model = named(raised(onnx.load(wish.source), OLDEST_OPSET))
        self._wanted = [Session(wish.source)(sample) for sample in wish.golden]

    def make(self, form: str, left: Collection[str] = ()) -> Lowered:
        """Round the weights.

        Raises:
            ExportError: there are none large enough to be worth it.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        rounded = _rounded(model.graph)
        if not rounded:
            raise ExportError(
                f"fp32 constants of {LEAST} elements or more, to be stored as bf16",
                got="none",
                fix="export as fp32: the file would not be smaller",
            )
        session = Session(save(model, self._wish.work / "trial.onnx"))
        error = error_of([session(sample) for sample in self._wish.golden], self._wanted)
        return Lowered(
            model=model,
            nodes=rounded,
            left={},
            facts={"form": form, "error": error},
            notes=(
                "weights alone are bf16: ONNX Runtime's CPU has no kernels that compute in it, so "
                "the file is smaller and no faster",
            ),
        )

    def dearest(self, form: str) -> Sequence[str]:
        """None."""
        return ()


def _rounded(graph: onnx.GraphProto) -> int:
    """Store the large fp32 constants as bf16, and cast them where the graph begins; how many.

    To the nearest, as PyTorch rounds; the names of the values stay.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size < LEAST:
            continue
        rounded = torch.from_numpy(array.copy()).to(torch.bfloat16).view(torch.int16).numpy()
        name, dims = tensor.name, list(tensor.dims)
        tensor.Clear()
        tensor.name = f"{name}:bf16"
        tensor.dims.extend(dims)
        tensor.data_type = TensorProto.BFLOAT16
        tensor.raw_data = rounded.tobytes()
        casts.append(
            onnx.helper.make_node(
                "Cast", [tensor.name], [name], name=f"{name}:cast", to=TensorProto.FLOAT
            )
        )
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend((*casts, *nodes))
    return len(casts)
