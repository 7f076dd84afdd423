"""LitServe, ONNX Runtime with every core, one request at a time (its default).

    python litserve_ort.py PORT BUNDLE MODEL_ONNX

POST /predict: uint8 images [batch, 224, 224, 3] as raw bytes -> float32 logits as raw bytes.
"""

import sys
from typing import Annotated

import litserve as ls
import numpy as np
import onnxruntime
from fastapi import Body, Response


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        return np.frombuffer(request, np.uint8).reshape(-1, 224, 224, 3)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(None, {"images": x})[0])

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ls.LitServer(Api(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
