"""Networks whose state is odd: layers with versions, tensors that layers share."""

from __future__ import annotations

from pathlib import Path

import digits as digit_scans
import msgspec
import pytest
import safetensors.torch
import torch

from tlexport.backbones import image_numbers
from tlexport.options import TrainOptions
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.tasks import Learner, image_classification
from tlexport.training import finish


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_scans.write(tmp_path_factory.mktemp("few"), per_class=3)


class Tied(torch.nn.Module):
    """Two layers that share their weight, as in timm's CoaT."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images.float().mean((1, 2))))


def test_shared_tensors_are_kept(few: Path, tmp_path: Path) -> None:
    numbers = image_numbers(
        size=(8, 8), resize=(8, 8), interpolation="nearest", statistics=((0.5,) * 3, (0.5,) * 3)
    )
    learner = Learner(extractor=Tied(), width=3, network={}, preprocess=numbers, source="here")
    model = finish.Model(
        task=image_classification,
        spec=image_classification.spec("tied", ("a", "b"), learner),
        learner=learner,
        network=image_classification.assemble(learner, torch.nn.Linear(3, 2)),
    )
    golden = image_classification.read(few).train[:1]
    bundle = finish.write(tmp_path, model, [msgspec.structs.replace(golden[0], label=0)])
    kept = safetensors.torch.load_file(bundle.weights)
    assert torch.equal(kept["extractor.first.weight"], learner.extractor.first.weight)
    assert torch.equal(kept["extractor.second.weight"], learner.extractor.first.weight)


def test_layers_with_versions_go_the_whole_way(few: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        backbone="torchvision/mnasnet0_5", weights="random", trials=1, epochs=5, golden=4
    )
    train(few, tmp_path / "b.bundle", options)
    export(tmp_path / "b.bundle")
    report = verify(tmp_path / "b.bundle")
    assert report.passed, [check.reason for check in report.checks if check.reason]
