"""--backbone: fine-tuned state dicts of torchvision and timm networks."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.stages.predict import predict


def save(module, path, **around):
    torch.save(
        {**around, "state_dict": module.state_dict()} if around else module.state_dict(), path
    )
    return str(path)


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\n")
    return str(tmp_path / "labels.txt")


def test_a_fine_tuned_resnet_answers_as_it_did(take, tmp_path, labels, digits):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3).eval()
    report = take(
        backbone="torchvision/resnet18",
        weights=save(model, tmp_path / "w.pth"),
        labels=labels,
        samples=str(digits / "3"),
        golden=4,
    )
    assert (report.task, report.labels) == ("image-classification", ("ant", "bee", "cow"))
    bundle = Bundle(tmp_path / "b")
    images = torch.from_numpy(bundle.golden().inputs["images"])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        wanted = model(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        found = networks.network(bundle)(images)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    told = predict(tmp_path / "b", sorted((digits / "3").iterdir())[:2])
    assert {p.labels[0] for p in told.predictions} <= {"ant", "bee", "cow"}


@pytest.mark.parametrize(
    ("backbone", "build"),
    [
        ("timm/lcnet_035", lambda: timm.create_model("lcnet_035", num_classes=5)),
        ("torchvision/squeezenet1_1", lambda: torchvision.models.squeezenet1_1(num_classes=5)),
    ],
)
def test_the_number_of_classes_is_read_off_the_weights(take, tmp_path, backbone, build):
    report = take(backbone=backbone, weights=save(build(), tmp_path / "w.pth", epoch=3), golden=2)
    assert report.outputs == ("logits:float32[batch,5]",)
    assert report.labels == ("0", "1", "2", "3", "4")
    assert "--labels" in report.notes[-1]
    assert networks.network(Bundle(tmp_path / "b")) is not None


def test_auxiliary_heads_are_left_out_and_told(take, tmp_path):
    model = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    report = take(
        backbone="torchvision/googlenet", weights=save(model, tmp_path / "w.pth"), golden=2
    )
    assert "aux1, aux2" in report.notes[0]


def test_bad_requests(take, tmp_path, labels):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=2)
    two = save(model, tmp_path / "two.pth")
    model.fc = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(512, 2))
    own = save(model, tmp_path / "own.pth")
    resnet = {"backbone": "torchvision/resnet18"}
    for options, error, told in (
        (resnet, OptionError, "--weights FILE"),
        ({"backbone": "resnet18", "weights": two}, OptionError, "SOURCE/NAME"),
        ({"backbone": "torchvision/resnet81", "weights": two}, OptionError, "did you mean"),
        ({**resnet, "weights": two, "labels": labels}, DataError, "for 3 labels"),
        ({**resnet, "weights": own}, DataError, "of your own making"),
        ({"backbone": "torchvision/resnet34", "weights": two}, DataError, "missing: layer1.2"),
        ({"backbone": "torchvision/vgg11", "weights": two}, DataError, "no tensor of a classifier"),
    ):
        with pytest.raises(error, match=told):
            take(**options)
