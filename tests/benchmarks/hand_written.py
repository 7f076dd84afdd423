"""Servers as people write them by hand, each as its own documentation says.

    python hand_written.py fastapi|litserve|pytriton PORT BUNDLE MODEL_ONNX

All take uint8 images [batch, 224, 224, 3] as raw bytes, PyTriton as the v2 protocol has them, and
answer float32 logits. The network is the same one: PyTorch eager for FastAPI, the exported file in
ONNX Runtime for the others, with all cores for one instance.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (224, 224, 3)
MAX_BATCH = 8


def images(body: bytes) -> np.ndarray:
    """The request's images: uint8 [batch, height, width, 3]."""
    return np.frombuffer(body, np.uint8).reshape(-1, *SIZE)


def session(model: Path) -> Any:
    """ONNX Runtime as it is unasked: every core, all optimisations."""
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def fastapi(port: int, bundle: Path, _: Path) -> None:
    """FastAPI and uvicorn, PyTorch eager in the thread pool, one inference at a time."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

    from tlexport import networks
    from tlexport.bundle import Bundle

    network, turn, app = networks.network(Bundle(bundle)).eval(), threading.Lock(), FastAPI()

    def infer(body: bytes) -> bytes:
        with turn, torch.inference_mode():
            return bytes(network(torch.from_numpy(images(body).copy())).numpy().tobytes())

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        answer = await run_in_threadpool(infer, await request.body())
        return Response(answer, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def litserve(port: int, _: Path, model: Path) -> None:
    """LitServe, ONNX Runtime, one request at a time (its default)."""
    import litserve as ls
    from fastapi import Request, Response

    class Api(ls.LitAPI):
        def setup(self, device: str) -> None:
            self.session = session(model)

        async def decode_request(self, request: Request) -> np.ndarray:
            return images(await request.body())

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.asarray(self.session.run(None, {"images": x})[0])

        def encode_response(self, output: np.ndarray) -> Response:
            return Response(output.tobytes(), media_type="application/octet-stream")

    ls.LitServer(Api(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning"
    )


def pytriton(port: int, _: Path, model: Path) -> None:
    """PyTriton, ONNX Runtime, its dynamic batcher without delay."""
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    opened = session(model)

    @batch
    def infer(images: np.ndarray) -> list[np.ndarray]:
        return list(opened.run(None, {"images": images}))

    ports = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, log_verbose=0)
    with Triton(config=ports) as triton:
        triton.bind(
            model_name="net",
            infer_func=infer,
            inputs=[Tensor(name="images", dtype=np.uint8, shape=SIZE)],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()


if __name__ == "__main__":
    name, number, *places = sys.argv[1:]
    {"fastapi": fastapi, "litserve": litserve, "pytriton": pytriton}[name](
        int(number), *map(Path, places)
    )
