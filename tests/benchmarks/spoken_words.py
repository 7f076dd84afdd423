"""Ten spoken words, four voices to learn from, drawn anew each time.

Whisper tiny.en's encoder with its real weights, frozen, and a head. Accuracy on the same
synthesiser's other 32 voices, and on another synthesiser's four.

    python tests/benchmarks/spoken_words.py [--draws 5] [--pooling mean|segments]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import speech

from tlexport.options import TrainOptions
from tlexport.stages.evaluate import evaluate
from tlexport.stages.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--pooling", default="auto")
    asked = parser.parse_args()
    table = Table("draw", "voices", "never heard", "another synthesiser")
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TLEXPORT_CACHE"] = str(folder / "cache")
        whole = speech.words(folder / "espeak", speech.ESPEAK)
        flite = speech.words(folder / "flite", speech.FLITE)
        options = TrainOptions(
            task="audio-classification",
            backbone=f"transformers/{speech.whisper()}",
            pooling=asked.pooling,
            force=True,
        )
        for draw in range(asked.draws):
            voices = random.Random(draw).sample(speech.ESPEAK, 4)
            parts = {"taught": folder / "taught", "unheard": folder / "unheard"}
            for place in parts.values():
                shutil.rmtree(place, ignore_errors=True)
            for clip in whole.glob("*/*.wav"):
                place = parts["taught" if clip.stem in voices else "unheard"]
                (place / clip.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(clip, place / clip.parent.name / clip.name)
            train(parts["taught"], folder / "b", options)
            row = [
                evaluate(folder / "b", data).accuracy.value for data in (parts["unheard"], flite)
            ]
            found.append(row)
            table.add_row(str(draw), " ".join(voices), *(f"{value:.3f}" for value in row))
    means = [sum(column) / len(found) for column in zip(*found, strict=True)]
    table.add_row("mean", "", *(f"{value:.3f}" for value in means))
    Console().print(table)


if __name__ == "__main__":
    main()
