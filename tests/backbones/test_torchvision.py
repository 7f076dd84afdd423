"""Every classification network of torchvision is a feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import models

from tlexport.backbones import _weights
from tlexport.backbones import torchvision as source
from tlexport.errors import OptionError
from tlexport.preprocess import image
from tlexport.tasks.image_classification import Pixels

FORWARD_BELOW = 30_000_000
"""Parameters of the largest network that is run; what is above differs in size alone."""


@pytest.fixture(autouse=True)
def _fast_start(monkeypatch):
    """Start weights take most of the time of building a network, and shapes do not need them."""
    for name in dir(torch.nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(load_sample_images().images[1])


@pytest.fixture(scope="module")
def scene_file(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "flower.png"
    scene.save(path)
    return path


def test_all_of_torchvisions_classification_networks_are_there():
    names = source.names()
    assert len(names) >= 80
    for family in ("vgg16", "resnet50", "inception_v3", "mobilenet_v3_large", "efficientnet_b0"):
        assert family in names
    assert {"convnext_tiny", "vit_b_16"} <= set(names)
    assert not [n for n in names if "segment" in n or "rcnn" in n or "quantized" in n]


@pytest.mark.parametrize("name", source.names())
def test_it_loses_its_classifier_alone_and_gives_one_row_of_features_per_image(name):
    pretrained = source.build(name)
    module = pretrained.module.eval()
    before = set(module.state_dict())
    parameters = sum(p.numel() for p in module.parameters())
    pretrained.behead(module)
    after = set(module.state_dict())
    gone = before - after
    assert gone, "it had a classifier"
    assert {key for key in gone if not key.startswith(pretrained.spare)} == set()
    assert not [key for key in after if key.startswith(pretrained.spare)]
    height, width = pretrained.preprocess["size"]
    if parameters < FORWARD_BELOW:
        with torch.inference_mode():
            features = module(torch.zeros(2, 3, height, width))
        assert features.ndim == 2
        assert features.shape[0] == 2
        assert features.shape[1] >= 300


@pytest.mark.parametrize("name", source.names())
def test_its_preprocessing_is_that_of_its_default_weights(name, scene, scene_file):
    numbers = source.build(name).preprocess
    theirs = models.get_model_weights(name).DEFAULT.transforms()(scene)
    pixels = image.load(scene_file, numbers)
    ours = Pixels(numbers["mean"], numbers["std"])(torch.from_numpy(pixels[None].copy()))[0]
    assert ours.shape == theirs.shape
    # torchvision's preset does the same on Pillow images: equal pixels, float32 rounding apart
    assert (ours - theirs).abs().max() < 5e-6


@pytest.mark.parametrize("name", sorted(source.AUXILIARY))
def test_auxiliary_heads_of_published_weights_are_dropped(name):
    published = models.get_model(name, weights=None, aux_logits=True, init_weights=False)
    state = published.state_dict()
    assert [key for key in state if key.startswith(source.AUXILIARY[name])]
    for tensor in state.values():
        tensor.fill_(0.5)
    pretrained = source.build(name)
    assert _weights.load(pretrained, "hub", lambda: state) == "hub"
    loaded = pretrained.module.state_dict()
    assert not [key for key in loaded if key.startswith(source.AUXILIARY[name])]
    kept = [key for key in loaded if not key.startswith(pretrained.spare)]
    assert all((loaded[key] == 0.5).all() for key in kept if loaded[key].is_floating_point())
    assert pretrained.module.transform_input, "the published weights want their inputs so"


def test_the_hub_is_asked_for_default_weights_with_their_digest(monkeypatch):
    asked = {}

    def get(self, *args, **kwargs):
        asked[str(self)] = kwargs
        return {"w": torch.zeros(1)}

    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", get)
    assert list(source.fetch("resnet50")) == ["w"]
    assert asked == {"ResNet50_Weights.IMAGENET1K_V2": {"progress": False, "check_hash": True}}


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5", "resnet50"), ("vgg-16", "vgg16"), ("fasterrcnn_resnet50_fpn", None), ("", None)],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(OptionError, match="a torchvision backbone of: ") as caught:
        source.build(name)
    if near is not None:
        assert near in caught.value.fix


def test_squeezenets_convolution_at_the_end_is_taken_off():
    pretrained = source.build("squeezenet1_1")
    module = pretrained.module
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.05)
    pretrained.behead(module)
    with torch.inference_mode():
        features = module.eval()(torch.rand(2, 3, 224, 224))
    assert features.shape == (2, 512)
    assert np.isfinite(features.numpy()).all()
