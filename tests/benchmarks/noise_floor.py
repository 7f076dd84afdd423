"""How many times its own rounding a healthy export is off, and what the whole grid costs.

Every network goes through train, export and verify with the default grid; random weights, digits
for images. `ratio` is the worst over all questions, the number that `verify` judges by.

    python tests/benchmarks/noise_floor.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import digits
import sequence_models

from tlexport.bundle import Bundle
from tlexport.options import TrainOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify

IMAGES = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/densenet121",
    "torchvision/regnet_y_400mf",
    "torchvision/vgg11",
    "torchvision/squeezenet1_1",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "torchvision/vit_b_32",
    "torchvision/swin_t",
    "torchvision/inception_v3",
    "timm/mixer_s32_224",
    "timm/tf_efficientnet_lite0",
)


def made(name: str, folder: Path, data: dict[str, Path]) -> Path:
    """A bundle of this network."""
    options = TrainOptions(backbone=name, weights="random", trials=1, golden=16)
    kind = "images"
    if name in (*sequence_models.TEXT, "MiniLM", *sequence_models.SPEECH):
        kind = "audio" if name in sequence_models.SPEECH else "text"
        options = TrainOptions(
            task=f"{kind}-classification",
            backbone=sequence_models.backbone(name, folder),
            max_length=sequence_models.TOKENS if kind == "text" else 0,
            max_seconds=10 if kind == "audio" else 0,
            trials=1,
            golden=2,
            val_fraction=0.3,
        )
    bundle = folder / f"{name.replace('/', '-')}.bundle"
    train(data[kind], bundle, options)
    return bundle


def main() -> None:
    """Print the table, a network a line."""
    everything = [*IMAGES, "MiniLM", *sequence_models.TEXT, *sequence_models.SPEECH]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=everything)
    table = Table("network", "", "own rounding", "ratio", "worst check", "questions", "verify s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TLEXPORT_CACHE"] = str(folder / "cache")
        data = {
            "images": digits.write(folder / "digits", per_class=8),
            "text": sequence_models.texts(folder / "t.csv"),
            "audio": sequence_models.clips(folder / "clips"),
        }
        for network in parser.parse_args().only:
            bundle = made(network, folder, data)
            export(bundle)
            start = time.perf_counter()
            report = verify(Bundle(bundle))
            spent = time.perf_counter() - start
            worst = max(report.checks, key=lambda check: check.ratio or 0.0)
            table.add_row(
                network,
                "passed" if report.passed else "FAILED",
                f"{(worst.own or 0) / (worst.scale or 1):.1e}",
                f"{worst.ratio or 0:.2f}",
                f"{worst.check} {worst.batch}",
                str(len(report.checks)),
                f"{spent:.1f}",
            )
            print(network, report.passed, worst.ratio, worst.check, f"{spent:.1f}", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
