"""Networks whose state is odd: layers with versions, tensors that layers share."""

from __future__ import annotations

from pathlib import Path

import digits as digit_scans
import pytest

from tlexport.options import TrainOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_scans.write(tmp_path_factory.mktemp("few"), per_class=3)


@pytest.mark.parametrize("backbone", ["torchvision/mnasnet0_5", "timm/coat_tiny"])
def test_it_goes_the_whole_way(backbone: str, few: Path, tmp_path: Path) -> None:
    options = TrainOptions(backbone=backbone, weights="random", trials=1, epochs=5, golden=4)
    train(few, tmp_path / "b.bundle", options)
    export(tmp_path / "b.bundle")
    report = verify(tmp_path / "b.bundle")
    assert report.passed, [check.reason for check in report.checks if check.reason]
