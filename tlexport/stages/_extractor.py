"""A frozen network in ONNX Runtime, for computing features."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.errors import ExportError
from tlexport.spec import Tensors, TensorSpec
from tlexport.tasks import Learner

OUTPUT = "features"


def in_onnxruntime(
    task: ModuleType, learner: Learner
) -> Callable[[Tensors], tuple[str, Callable[[Tensors], np.ndarray]]]:
    """What makes, of sample inputs, the extractor of `learner` as ONNX Runtime runs it.

    It is exported as it stands, nothing of it is kept on disk. Raises ExportError where it cannot.
    """

    def make(samples: Tensors) -> tuple[str, Callable[[Tensors], np.ndarray]]:
        spec = task.spec(OUTPUT, ("a", "b"), learner)
        output = TensorSpec(name=OUTPUT, dtype="float32", shape=("batch", learner.width))
        spec = msgspec.structs.replace(spec, outputs=(output,))
        rows = min(len(array) for array in samples.values())
        if rows < 2:
            raise ExportError(
                "two examples to trace the network with",
                got=f"a batch of {rows}",
                fix="pass a --batch of 2 or more",
            )
        with tempfile.TemporaryDirectory() as folder:
            part = plugins.load("targets", "onnx").part
            session = part(learner.extractor, spec, samples, Path(folder))

        def ask(inputs: Tensors) -> np.ndarray:
            features: np.ndarray = session(inputs)[OUTPUT]
            return features

        return "ONNX Runtime", ask

    return make
