"""Metrics of a classifier, counted batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from tlexport.tasks import Decisions, Scores

TOP = 5
BINS = 15
"""Bins of the expected calibration error: as in Guo et al., On Calibration of Modern Neural
Networks (2017)."""


class ClassScorer:
    """Metrics by torchmetrics, batch by batch; macro F1 is over the labels present."""

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._metrics = MetricCollection(
            {
                "macro_f1": MulticlassF1Score(labels, average="macro"),
                "precision": MulticlassPrecision(labels, average="none"),
                "recall": MulticlassRecall(labels, average="none"),
                "confusion": MulticlassConfusionMatrix(labels),
            }
        )
        self._calibration = MulticlassCalibrationError(labels, n_bins=BINS)
        self._top = MulticlassAccuracy(labels, top_k=TOP, average="micro") if labels > TOP else None

    def update(self, truth: np.ndarray, decisions: Decisions) -> None:
        """Count a batch; truth: int64 [batch]."""
        true = torch.from_numpy(truth)
        self._metrics.update(torch.from_numpy(decisions.order[:, 0].copy()), true)
        probabilities = np.empty_like(decisions.probabilities)
        np.put_along_axis(probabilities, decisions.order, decisions.probabilities, axis=1)
        each = torch.from_numpy(probabilities).float()
        self._calibration.update(each, true)
        if self._top is not None:
            self._top.update(each, true)

    def scores(self) -> Scores:
        """Of all that was counted."""
        found = self._metrics.compute()
        confusion = found["confusion"].numpy()
        return Scores(
            accuracy=float(confusion.trace() / confusion.sum()),  # exact, where float32 is not
            macro_f1=float(found["macro_f1"]),
            precision=found["precision"].numpy(),
            recall=found["recall"].numpy(),
            confusion=confusion,
            calibration_error=float(self._calibration.compute()),
            top5=float(self._top.compute()) if self._top is not None else None,
        )
