"""PyTriton, ONNX Runtime with every core, its dynamic batcher without delay.

    python pytriton_ort.py PORT BUNDLE MODEL_ONNX

The v2 protocol; model "net": images uint8 [batch, 224, 224, 3] -> logits float32.
"""

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])


@batch
def infer(images: np.ndarray) -> list[np.ndarray]:
    return list(session.run(None, {"images": images}))


if __name__ == "__main__":
    port = int(sys.argv[1])
    ports = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, log_verbose=0)
    with Triton(config=ports) as triton:
        triton.bind(
            model_name="net",
            infer_func=infer,
            inputs=[Tensor(name="images", dtype=np.uint8, shape=(224, 224, 3))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()
