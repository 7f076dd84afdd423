"""A small bundle made by hand: uint8 [batch, 8, 8, 3] -> float32 logits [batch, 3]."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from tlexport.bundle import (
    Artifact,
    Bundle,
    GoldenSample,
    Manifest,
    digest_of,
    encode,
    golden_digest,
    write_tensors,
)
from tlexport.environment import environment
from tlexport.files import sha256_of
from tlexport.reports import ParityReport, ShapeParity
from tlexport.spec import ModelSpec, TensorSpec

LABELS = ("ant", "bee", "crow")
SAMPLES = 6


def spec(name: str = "insects") -> ModelSpec:
    return ModelSpec(
        name=name,
        task="image-classification",
        inputs=(
            TensorSpec(name="images", dtype="uint8", shape=("batch", 8, 8, 3), legal=(0, 255)),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
        labels=LABELS,
        preprocess={"size": 8},
    )


def weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (192, 3)).astype(np.float32)


def network(seed: int = 0, features: int = 3) -> onnx.ModelProto:
    """Flatten, scale, and one matrix: the answer is images / 255 @ weight."""
    matrix = weight(seed)[:, :features]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Div", ["flat", "full"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "insects",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", features])],
        [
            numpy_helper.from_array(matrix, "weight"),
            numpy_helper.from_array(np.float32(255), "full"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def images(count: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def answers(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
    return flat @ weight(seed)


def make(
    root: Path,
    *,
    seed: int = 0,
    name: str = "insects",
    proven: bool = True,
    options: dict[str, object] | None = None,
    external: bool = False,
) -> Bundle:
    """Write the bundle with its artifact and, unless told otherwise, a passing report."""
    (root / "golden").mkdir(parents=True)
    safetensors.numpy.save_file({"weight": weight(seed)}, root / "weights.safetensors")
    write_tensors(root / "golden/inputs.safetensors", {"images": images()})
    write_tensors(root / "golden/outputs.safetensors", {"logits": answers(images(), seed)})
    manifest = Manifest(
        spec=spec(name),
        network={},
        weights_sha256=sha256_of(root / "weights.safetensors"),
        golden_sha256=golden_digest(root / "golden"),
        golden=tuple(GoldenSample(file=f"{index}.png") for index in range(SAMPLES)),
        versions={"tlexport": "test"},
    )
    (root / "bundle.json").write_bytes(encode(manifest))
    add_artifact(root, seed, options or {"opset": 18, "ir_version": 10}, external)
    bundle = Bundle(root)
    if proven:
        bundle.write_report("parity-onnx-fp32", parity(bundle))
    return bundle


def add_artifact(root: Path, seed: int, options: dict[str, object], external: bool) -> None:
    bundle = Bundle(root)
    folder = root / "new"
    files: tuple[str, ...] = ("model.onnx",)
    if external:
        files = ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
    (folder / files[0]).parent.mkdir(parents=True)
    onnx.save_model(
        network(seed),
        folder / files[0],
        save_as_external_data=external,
        location="model.onnx.data" if external else None,
        size_threshold=64,
    )
    artifact = Artifact(
        target="onnx",
        precision="fp32",
        file=files[0],
        files=files,
        sha256=digest_of(folder, files),
        source_sha256=bundle.manifest.weights_sha256,
        triton_backend="onnxruntime",
        options=options,
        versions={"onnx": "test"},
    )
    bundle.add_artifact(artifact, folder)
    shutil.rmtree(folder)


def parity(bundle: Bundle, **changes: object) -> ParityReport:
    artifact = bundle.artifact("onnx-fp32")
    check = ShapeParity(
        check="answers",
        batch=16,
        output="logits",
        max_abs=1e-7,
        max_rel=1e-7,
        scale=1.0,
        worst_index=(0, 0),
        passed=True,
    )
    fields: dict[str, object] = {
        "reference": "eager@cpu",
        "candidate": "ort@cpu",
        "artifact": artifact.name,
        "artifact_sha256": artifact.sha256,
        "weights_sha256": bundle.manifest.weights_sha256,
        "tolerance": 1e-4,
        "samples": SAMPLES,
        "checks": (check,),
        "flips": (),
        "max_abs": 1e-7,
        "max_rel": 1e-7,
        "passed": True,
        "environment": environment(),
    }
    return ParityReport(**(fields | changes))  # type: ignore[arg-type]
