"""Small real bundles: a tiny trained-looking conv net, exported by torch."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import numpy_helper

from tlexport import plugins
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
from tlexport.environment import versions
from tlexport.files import sha256_of
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.tasks import _classify

LABELS = ("cat", "dog", "eel", "fox")
SIZE = 16


class Tiny(torch.nn.Module):
    """images: uint8 [batch, height, width, 3] -> logits: float32 [batch, 4]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.head = torch.nn.Linear(16 * 4, len(LABELS))
        torch.nn.init.normal_(self.norm.running_mean, std=0.1)
        torch.nn.init.uniform_(self.norm.running_var, 0.05, 0.5)
        torch.nn.init.normal_(self.norm.bias, std=0.1)
        torch.nn.init.normal_(self.head.weight)
        with torch.no_grad():  # so that different images get different labels
            logits = Tiny.forward(self.eval(), torch.from_numpy(images(32)))
            self.head.bias -= logits.mean(0)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        hidden = torch.relu(self.norm(self.first(pixels)))
        hidden = torch.nn.functional.adaptive_avg_pool2d(torch.relu(self.second(hidden)), 2)
        return self.head(hidden.flatten(1))


def spec() -> ModelSpec:
    image = TensorSpec(name="images", dtype="uint8", shape=("batch", SIZE, SIZE, 3), legal=(0, 255))
    logits = TensorSpec(name="logits", dtype="float32", shape=("batch", len(LABELS)))
    return ModelSpec(name="tiny", task="tiny", inputs=(image,), outputs=(logits,), labels=LABELS)


def images(count: int, seed: int = 1) -> np.ndarray:
    """Smooth blobs of colour: uint8 [count, 16, 16, 3], all different."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 4)))
    fine = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    return np.ascontiguousarray(fine.permute(0, 2, 3, 1).round().to(torch.uint8).numpy())


def answers(network: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(inputs.copy())).numpy()


def export(network: torch.nn.Module, path: Path, *, batch: int | None = None) -> None:
    """Write ONNX with a dynamic batch axis, or with the constant `batch`."""
    example = torch.from_numpy(images(batch or 2))
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=shapes,
        opset_version=18,
    )
    program.save(path, external_data=False)


@functools.cache
def healthy_onnx() -> Path:
    """Tiny, seed 0, exported as it should be; made once."""
    folder = Path(tempfile.mkdtemp(prefix="tlexport-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export(Tiny().eval(), folder / "model.onnx")
    return folder / "model.onnx"


def make(
    root: Path,
    onnx_file: Path | None = None,
    *,
    network: torch.nn.Module | None = None,
    samples: int = 12,
    golden_outputs: np.ndarray | None = None,
) -> Path:
    """Write a bundle of `network` (Tiny, seed 0) whose artifact is `onnx_file`, if given."""
    network = network or Tiny()
    network.eval()
    (root / "golden").mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), root / "weights.safetensors")
    inputs = images(samples)
    if golden_outputs is None:
        golden_outputs = answers(network, inputs)
    write_tensors(root / "golden" / "inputs.safetensors", {"images": inputs})
    write_tensors(root / "golden" / "outputs.safetensors", {"logits": golden_outputs})
    manifest = Manifest(
        spec=spec(),
        network={},
        weights_sha256=sha256_of(root / "weights.safetensors"),
        golden_sha256=golden_digest(root / "golden"),
        golden=tuple(GoldenSample(file=f"{i}.png") for i in range(samples)),
        versions=versions(),
    )
    (root / "bundle.json").write_bytes(encode(manifest))
    if onnx_file is not None:
        put_artifact(root, onnx_file)
    return root


def put_artifact(root: Path, onnx_file: Path) -> None:
    """Make `onnx_file` the artifact onnx-fp32 of the bundle, made (it says) from its weights."""
    folder = root / "new"
    folder.mkdir()
    shutil.copy(onnx_file, folder / "model.onnx")
    put_folder(root, folder, ("model.onnx",))
    shutil.rmtree(folder)


def put_folder(root: Path, folder: Path, files: tuple[str, ...]) -> None:
    """The same of the files below `folder`, the one to open first."""
    bundle = Bundle(root)
    artifact = Artifact(
        target="onnx",
        precision="fp32",
        file=files[0],
        files=files,
        sha256=digest_of(folder, files),
        source_sha256=bundle.manifest.weights_sha256,
        triton_backend="onnxruntime",
        options={},
        versions=versions(),
    )
    bundle.add_artifact(artifact, folder)


def edit(source: Path, target: Path, change) -> Path:
    """Copy an ONNX file; `change(arrays)` may alter the initializers, a dict of arrays."""
    model = onnx.load(source)
    arrays = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    change(arrays)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, target)
    return target


def plug_runtime(monkeypatch, name: str, opener) -> None:
    """Add a runtime `name` whose module offers `open=opener`."""
    load = plugins.load

    def load_or_new(folder: str, wanted: str):
        if (folder, wanted) == ("runtimes", name):
            return SimpleNamespace(open=opener)
        return load(folder, wanted)

    monkeypatch.setattr(plugins, "load", load_or_new)


def plug_task(monkeypatch, network=Tiny) -> None:
    """Let the task "tiny" build `network()` with the bundle's weights."""
    load = plugins.load

    def build(bundle: Bundle) -> torch.nn.Module:
        built = network()
        built.load_state_dict(safetensors.torch.load_file(bundle.weights))
        return built.eval()

    task = SimpleNamespace(
        network=build, probes=lambda spec, inputs, most: [], decide=_classify.decide
    )

    def load_or_tiny(folder: str, name: str):
        return task if name == "tiny" else load(folder, name)

    monkeypatch.setattr(plugins, "load", load_or_tiny)
