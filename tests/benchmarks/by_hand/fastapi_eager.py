"""FastAPI and uvicorn, PyTorch eager in the thread pool, one inference at a time.

    python fastapi_eager.py PORT BUNDLE MODEL_ONNX

POST /predict: uint8 images [batch, 224, 224, 3] as raw bytes -> float32 logits as raw bytes.
"""

import sys
import threading
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from tlexport import networks
from tlexport.bundle import Bundle

app = FastAPI()
network = networks.network(Bundle(Path(sys.argv[2]))).eval()
turn = threading.Lock()


def infer(body: bytes) -> bytes:
    images = np.frombuffer(body, np.uint8).reshape(-1, 224, 224, 3)
    with turn, torch.inference_mode():
        return bytes(network(torch.from_numpy(images.copy())).numpy().tobytes())


@app.post("/predict")
async def predict(request: Request) -> Response:
    answer = await run_in_threadpool(infer, await request.body())
    return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
