"""What logits decide, and how often that is right."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from tlexport.spec import ModelSpec, Tensors
from tlexport.tasks import Decisions, Scores


def decide(spec: ModelSpec, outputs: Tensors) -> Decisions:
    """Softmax of the first output, float32 [batch, labels], sorted by probability."""
    logits = np.asarray(outputs[spec.outputs[0].name], dtype=np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return Decisions(order, np.take_along_axis(probabilities, order, axis=1))


def score(spec: ModelSpec, truth: np.ndarray, decisions: Decisions) -> Scores:
    """Metrics by torchmetrics; truth: int64 [examples]. Macro F1 is over the labels present."""
    predicted = torch.from_numpy(decisions.order[:, 0].copy())
    true, count = torch.from_numpy(truth), len(spec.labels)
    return Scores(
        accuracy=float((predicted == true).double().mean()),
        macro_f1=float(multiclass_f1_score(predicted, true, count, average="macro")),
        precision=multiclass_precision(predicted, true, count, average="none").numpy(),
        recall=multiclass_recall(predicted, true, count, average="none").numpy(),
        confusion=multiclass_confusion_matrix(predicted, true, count).numpy(),
    )
