"""What logits decide, and how often that is right."""

from __future__ import annotations

import numpy as np

from tlexport.spec import ModelSpec, Tensors
from tlexport.tasks import Decisions, Scorer


def decide(spec: ModelSpec, outputs: Tensors) -> Decisions:
    """Softmax of the first output, float32 [batch, labels], sorted by probability."""
    logits = np.asarray(outputs[spec.outputs[0].name], dtype=np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return Decisions(order, np.take_along_axis(probabilities, order, axis=1))


def scorer(spec: ModelSpec) -> Scorer:
    """Counts decisions against the truth."""
    from tlexport.tasks._scores import ClassScorer  # torchmetrics takes two seconds to import

    return ClassScorer(len(spec.labels))
