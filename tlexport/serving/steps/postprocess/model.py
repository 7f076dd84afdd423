"""Pipeline step: the model's scores to labels.

Runs in the server's own process and needs numpy alone.

step.json    {"scores": the model's output, "labels": of its columns, "top": how many are told}
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
LABEL, PROBABILITY, ERROR = "label", "probability", "error"
NOT_FINITE = (
    "expected finite scores from the model; got: NaN or infinity; fix: `tlexport verify` the "
    "served model, or serve it in a higher precision"
)


class TritonPythonModel:
    """The class the server's stub looks for."""

    def initialize(self, args):
        """Read the labels."""
        told = json.loads((HERE / "step.json").read_text("utf-8"))
        self.scores, self.top = told["scores"], told["top"]
        self.labels = np.array([label.encode() for label in told["labels"]], dtype=np.object_)

    def execute(self, requests):
        """The likeliest labels of each item, best first; none of an item that has an error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        scores = pb_utils.get_input_tensor_by_name(request, self.scores).as_numpy()
        errors = pb_utils.get_input_tensor_by_name(request, ERROR).as_numpy().copy()
        scores = scores.astype(np.float64)
        odd = ~np.isfinite(scores).all(axis=1)
        scores[odd] = 0
        errors[odd & (errors[:, 0] == b""), 0] = NOT_FINITE.encode()
        if len(errors) == 1 and odd[0]:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(errors[0, 0].decode()))
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
        labels = self.labels[order]
        likely = np.take_along_axis(probabilities, order, axis=1).astype(np.float32)
        bad = errors[:, 0] != b""
        labels[bad], likely[bad] = b"", 0  # not NaN: JSON has none, and would fail the batch mates
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(LABEL, labels),
                pb_utils.Tensor(PROBABILITY, likely),
                pb_utils.Tensor(ERROR, errors),
            ]
        )
