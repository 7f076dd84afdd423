"""scikit-learn's handwritten digits as an image folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write(root: Path, per_class: int | None = None) -> Path:
    """Write `root`/<digit>/<number>.png: 8 x 8 real scans, all 1,797 or the first of each class."""
    digits = load_digits()
    counts: dict[int, int] = {}
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        counts[digit] = counts.get(digit, 0) + 1
        if per_class is not None and counts[digit] > per_class:
            continue
        path = root / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return root


def some(digits: Path, root: Path, labels: str, count: int) -> Path:
    """Copy the first `count` scans of each of those labels to `root`, for a test to spoil."""
    for label in labels:
        (root / label).mkdir(parents=True)
        for path in sorted((digits / label).iterdir())[:count]:
            shutil.copyfile(path, root / label / path.name)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--per-class", type=int)
    arguments = parser.parse_args()
    write(arguments.root, arguments.per_class)
