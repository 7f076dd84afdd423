"""Images in, labels out; the network is built again as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from torchvision.transforms import v2

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.options import TrainOptions
from tlexport.preprocess import image
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.tasks import Decisions, Example
from tlexport.tasks import image_classification as task
from tlexport.tasks.image_classification import Pixels
from tlexport.training import finish

NUMBERS = {
    "size": [32, 32],
    "resize": [36, 36],
    "mode": "shortest",
    "interpolation": "bilinear",
    "fill": [0, 0, 0],
    "background": [255, 255, 255],
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_broken_files_are_told_apart_and_rows_stay_aligned(digits, tmp_path):
    good = sorted((digits / "3").iterdir())[:3]
    text, empty, cut = (tmp_path / n for n in ("text.png", "empty.png", "cut.png"))
    text.write_text("not an image")
    empty.write_bytes(b"")
    cut.write_bytes(good[0].read_bytes()[:60])
    paths = [good[0], text, good[1], empty, cut, tmp_path / "gone.png", good[2]]
    loaded = task.load(paths, NUMBERS)
    assert list(loaded.broken) == [1, 3, 4, 5]
    assert "No such file" in loaded.broken[5]
    assert "no image" in loaded.broken[1]
    pixels = loaded.inputs["images"]
    assert pixels.shape == (7, 32, 32, 3)
    assert pixels.dtype == np.uint8
    for row in (0, 2, 6):
        assert np.array_equal(pixels[row], image.load(paths[row], NUMBERS))
    for row in loaded.broken:
        assert not pixels[row].any()


def test_no_files_give_no_rows():
    assert task.load([], NUMBERS).inputs["images"].shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    "statistics", [IMAGENET, ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)]
)
def test_pixels_are_torchvisions_to_tensor_and_normalize(statistics):
    mean, std = statistics
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    theirs = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )
    ours = Pixels(mean, std)(torch.from_numpy(values[None]))
    assert ours.shape == (1, 3, 16, 16)
    assert ours.dtype == torch.float32
    assert (ours[0] - theirs(Image.fromarray(values))).abs().max() < 1e-6


def test_pixels_keep_the_channels_in_their_places():
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    out = Pixels((0, 0, 0), (1, 1, 1))(torch.from_numpy(red))
    assert out[0, :, 0, 0].tolist() == [1, 0, 0]


def test_the_network_of_a_bundle_is_the_one_that_was_assembled(digits, tmp_path):
    learner = task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=3), None)
    torch.manual_seed(0)
    head = torch.nn.Linear(learner.width, 10)
    assembled = task.assemble(learner, head)
    examples = task.read(digits)
    model = finish.Model(
        task=task,
        spec=task.spec("m", examples.labels, learner),
        learner=learner,
        network=assembled,
    )
    (tmp_path / "b").mkdir()
    bundle = finish.write(tmp_path / "b", model, examples.train[::100])
    again = task.network(Bundle(tmp_path / "b"))
    assert not again.training
    golden = bundle.golden()
    with torch.inference_mode():
        first = assembled(torch.from_numpy(golden.inputs["images"]))
        second = again(torch.from_numpy(golden.inputs["images"]))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.from_numpy(golden.outputs["logits"]))
    assert bundle.spec.inputs[0].shape == ("batch", 224, 224, 3)
    assert bundle.spec.outputs[0].shape == ("batch", 10)


def test_a_learner_is_frozen_in_eval_mode_and_reproducible():
    first, second = (
        task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=5), None)
        for _ in range(2)
    )
    other = task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=6), None)
    assert not first.extractor.training
    assert not any(p.requires_grad for p in first.extractor.parameters())
    states = [learner.extractor.state_dict() for learner in (first, second, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert first.source == "random"


def test_building_a_learner_leaves_the_callers_random_state_alone():
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=5), None)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    ("backbone", "expected", "got"),
    [
        ("resnet50", "SOURCE/NAME", "'resnet50'"),
        ("timm/", "SOURCE/NAME", "'timm/'"),
        ("/resnet50", "SOURCE/NAME|a backbone of", "''|'/resnet50'"),
        ("keras/resnet50", "a backbone of: timm, torchvision", "no backbone called 'keras'"),
    ],
)
def test_a_backbone_is_written_source_and_name(backbone, expected, got):
    with pytest.raises(OptionError, match=expected) as caught:
        task.learner(TrainOptions(backbone=backbone, weights="random", seed=0), None)
    assert any(part in caught.value.got for part in got.split("|"))


def test_a_network_without_one_row_of_features_per_image_is_refused(monkeypatch):
    from tlexport.backbones import timm as source

    build = source.build

    def with_maps(name: str, recipe=None):
        def behead(module: torch.nn.Module) -> None:
            module.forward = module.forward_features

        return dataclasses.replace(build(name), behead=behead)

    monkeypatch.setattr(source, "build", with_maps)
    with pytest.raises(OptionError, match="one row of features per example") as caught:
        task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=0), None)
    assert "timm/lcnet_035 gives [1, " in caught.value.got


def test_a_network_that_cannot_answer_is_refused_in_its_own_words(monkeypatch):
    from tlexport.backbones import timm as source

    build = source.build

    def broken(name: str, recipe=None):
        def behead(module: torch.nn.Module) -> None:
            module.forward = lambda images: images.view(3, 5)

        return dataclasses.replace(build(name), behead=behead)

    monkeypatch.setattr(source, "build", broken)
    with pytest.raises(OptionError, match=r"answers inputs of \[1, 224, 224, 3\]") as caught:
        task.learner(TrainOptions(backbone="timm/lcnet_035", weights="random", seed=0), None)
    assert "timm/lcnet_035 raises RuntimeError: shape '[3, 5]' is invalid" in caught.value.got


def test_text_files_named_as_images_do_not_make_a_data_set(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.txt").write_text("x")
    with pytest.raises(DataError, match="images in every class folder"):
        task.read(tmp_path)


LABELS = ("ant", "bee", "cow", "dog")
SPEC = ModelSpec(
    name="m",
    task=task.NAME,
    inputs=(),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 4)),),
    labels=LABELS,
)


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Logits of a fair classifier and the truth; "dog" never comes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200)
    logits = rng.normal(0, 1, (200, 4)).astype(np.float32)
    logits[np.arange(200), truth] += 1.5
    return logits, truth.astype(np.int64)


def test_decisions_are_the_softmax_in_falling_order(answers):
    logits, _ = answers
    decided = task.decide(SPEC, {"logits": logits})
    expected = torch.softmax(torch.from_numpy(logits).double(), 1)
    values, order = expected.sort(dim=1, descending=True, stable=True)
    assert np.array_equal(decided.order, order.numpy())
    assert np.allclose(decided.probabilities, values.numpy(), atol=1e-12)
    assert np.allclose(decided.probabilities.sum(1), 1)


def test_huge_logits_do_not_overflow_and_equal_ones_keep_the_labels_order():
    decided = task.decide(SPEC, {"logits": np.array([[3e38, 0, 0, 0], [1, 1, 1, 1]], np.float32)})
    assert decided.probabilities[0].tolist() == [1, 0, 0, 0]
    assert decided.order[1].tolist() == [0, 1, 2, 3]
    assert decided.probabilities[1].tolist() == [0.25] * 4


def test_scores_are_those_of_scikit_learn(answers):
    logits, truth = answers
    decided = task.decide(SPEC, {"logits": logits})
    scorer = task.scorer(SPEC)
    for part in np.array_split(np.arange(len(truth)), 3):  # batches of any size
        scorer.update(truth[part], Decisions(decided.order[part], decided.probabilities[part]))
    scores = scorer.scores()
    predicted = decided.order[:, 0]
    present = sorted(set(truth) | set(predicted))
    options = {"labels": range(4), "zero_division": 0.0}
    assert scores.accuracy == sklearn.metrics.accuracy_score(truth, predicted)
    assert scores.macro_f1 == pytest.approx(
        sklearn.metrics.f1_score(truth, predicted, labels=present, average="macro"), abs=1e-6
    )
    assert np.allclose(
        scores.precision, sklearn.metrics.precision_score(truth, predicted, average=None, **options)
    )
    assert np.allclose(
        scores.recall, sklearn.metrics.recall_score(truth, predicted, average=None, **options)
    )
    confusion = sklearn.metrics.confusion_matrix(truth, predicted, labels=range(4))
    assert np.array_equal(scores.confusion, confusion)
    assert scores.top5 is None


def test_calibration_error_and_top_5_are_those_counted_by_hand():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (500, 8)).astype(np.float32)
    truth = np.where(rng.random(500) < 0.5, logits.argmax(1), rng.integers(0, 8, 500))
    labels = tuple("abcdefgh")
    eight = ModelSpec(name="m", task="x", inputs=(), outputs=SPEC.outputs, labels=labels)
    decided = task.decide(eight, {"logits": logits})
    scorer = task.scorer(eight)
    for part in np.array_split(np.arange(500), 7):
        scorer.update(truth[part], Decisions(decided.order[part], decided.probabilities[part]))
    found = scorer.scores()
    best, right = decided.probabilities[:, 0], decided.order[:, 0] == truth
    bins = np.minimum((best * 15).astype(int), 14)
    gaps = [abs(best[bins == b].sum() - right[bins == b].sum()) for b in range(15)]
    assert found.calibration_error == pytest.approx(sum(gaps) / 500, abs=1e-5)
    assert found.calibration_error > 0.05
    ranked = (decided.order[:, :5] == truth[:, None]).any(1)
    assert found.top5 == pytest.approx(ranked.mean(), abs=1e-6)
    assert found.accuracy < found.top5 < 1


def test_real_names_of_files_are_not_read_as_options(digits, tmp_path):
    odd = Path(tmp_path) / "-n $(x) '.png"
    odd.write_bytes(next((digits / "1").iterdir()).read_bytes())
    assert not task.load([odd], NUMBERS).broken


@pytest.mark.parametrize("change", [{"backbone": "timm/test_resnet"}, {"features": 7}, None])
def test_a_bundle_whose_network_is_not_of_its_weights_is_refused(digits, tmp_path, change):
    learner = task.learner(TrainOptions(backbone="timm/test_vit", weights="random", seed=0), None)
    model = finish.Model(
        task=task,
        spec=task.spec("b", ("a", "b"), learner),
        learner=learner,
        network=task.assemble(learner, torch.nn.Linear(learner.width, 2)),
    )
    golden = [Example(source=digits / "0" / "0000.png", label=0, digest="")]
    bundle = finish.write(tmp_path, model, golden)
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    manifest["network"] = manifest["network"] | change if change else {}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"a network in .* that its weights fit") as caught:
        task.network(Bundle(bundle.root))
    assert len(caught.value.got) < 300
