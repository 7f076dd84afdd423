"""A frozen network in ONNX Runtime, for computing features."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.errors import ExportError
from tlexport.spec import Tensors, TensorSpec
from tlexport.tasks import Learner
from tlexport.training.forward import Faster, Forward

NAME = "ONNX Runtime"
OUTPUT = "features"


def in_onnxruntime(task: ModuleType, learner: Learner) -> Faster:
    """What makes, of sample inputs, the extractor of `learner` as ONNX Runtime runs it.

    It is exported as it stands, nothing of it is kept on disk. Raises ExportError where it cannot.
    """

    def make(samples: Tensors) -> tuple[str, Forward]:
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
        return NAME, _asking(session, OUTPUT)

    return make


def before_the_head(file: Path, width: int) -> Faster:
    """What makes the extractor of a classifier's ONNX file: features are `width` numbers.

    Raises ExportError where the file computes none that its answers are made of.
    """

    def make(samples: Tensors) -> tuple[str, Forward]:
        with tempfile.TemporaryDirectory() as folder:
            session, name = plugins.load("targets", "onnx").inner(file, width, Path(folder))
        return NAME, _asking(session, name)

    return make


def _asking(
    session: Callable[[Tensors, Sequence[str]], Mapping[str, np.ndarray]], name: str
) -> Forward:
    def ask(inputs: Tensors) -> np.ndarray:
        return session(inputs, [name])[name]

    return ask
