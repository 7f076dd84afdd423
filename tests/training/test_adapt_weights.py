"""What examples count, what steps compute in, and what is refused for want of a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import digits as digit_scans
import msgspec
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.options import AdaptOptions, TrainOptions
from tlexport.reports import EpochReport, TrainReport
from tlexport.stages.train import train
from tlexport.tasks import Example, image_classification
from tlexport.training.better import badness, right
from tlexport.training.split import split

HARD, RARE = "389", 1
"""Digits that look alike; of the middle one there are 6 to train on, of the others 24 each."""

HELD_OUT = 0.4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real scans: 40 of 3 and of 9, 10 of 8."""
    root = tmp_path_factory.mktemp("unbalanced")
    digit_scans.write(root / "all", per_class=80)
    digit_scans.some(root / "all", root / "few", "39", 40)
    return digit_scans.some(root / "all", root / "few", "8", 10)


def asked(weights: Path, **adapt: object) -> TrainOptions:
    return TrainOptions(
        backbone="timm/test_efficientnet",
        weights=str(weights),
        golden=4,
        class_weights=True,
        val_fraction=HELD_OUT,
        adapt=AdaptOptions(**adapt),
    )


def answers(bundle: Path, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the bundle's network and the labels."""
    held = Bundle(bundle)
    inputs = image_classification.load(
        [example.source for example in examples], held.spec.preprocess, {}
    ).inputs
    logits = networks.answers(networks.network(held), inputs, ["logits"])["logits"]
    return logits, np.array([example.label for example in examples])


@pytest.fixture(scope="module")
def frozen(weights, unbalanced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head that an adaptation starts from, with class weights."""
    output = tmp_path_factory.mktemp("weights") / "frozen.bundle"
    train(unbalanced, output, asked(weights))
    return output


def test_each_class_counts_by_the_inverse_of_its_share(
    weights, unbalanced, frozen, tmp_path
) -> None:
    """A single step of all examples: its loss is the frozen head's own, as torch weighs it."""
    wanted = asked(
        weights,
        unfreeze="all",
        adapt_epochs=1,
        adapt_batch=64,
        label_smoothing=0,
        adapt_precision="fp32",
    )
    report = train(unbalanced, tmp_path / "one.bundle", wanted)
    assert report.adapted is not None
    examples = split(image_classification.read(unbalanced), fraction=HELD_OUT, seed=0).train
    logits, labels = answers(frozen, examples)
    counts = np.bincount(labels)
    assert counts.tolist() == [24, 6, 24]
    weighed = len(labels) / (3 * counts)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weighed, dtype=torch.float32))
    expected = float(loss(torch.tensor(logits), torch.tensor(labels)))
    assert report.adapted.epochs[0].loss == pytest.approx(expected, rel=1e-3)
    alike = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert abs(float(alike) - expected) > 0.05 * expected, "weights make a difference here"


def test_the_rare_class_is_not_given_up(weights, unbalanced, frozen, tmp_path) -> None:
    wanted = asked(weights, unfreeze="all", adapt_epochs=4, adapt_batch=16, learning_rate=5e-5)
    output = tmp_path / "adapted.bundle"
    report = train(unbalanced, output, wanted)
    assert report.adapted is not None
    assert report.adapted.best_epoch > 0, "else it would be the frozen head once more"
    held = split(image_classification.read(unbalanced), fraction=HELD_OUT, seed=0)
    counts = np.bincount([example.label for example in held.train])
    found = []
    for bundle in (frozen, output):
        logits, labels = answers(bundle, held.val)
        each = (len(held.train) / (3 * counts))[labels]
        found.append(float(((logits.argmax(1) == labels) * each).sum() / each.sum()))
    assert report.best.val_weighed == pytest.approx(found[1])
    assert found[1] >= found[0]
    train(
        unbalanced,
        tmp_path / "alike.bundle",
        msgspec.structs.replace(wanted, class_weights=False),
    )
    before, after, alike = (
        rare_recall(unbalanced.with_name("all"), bundle)
        for bundle in (frozen, output, tmp_path / "alike.bundle")
    )
    assert after >= before
    assert after > alike, "what class weights are for"


def rare_recall(root: Path, bundle: Path) -> float:
    """The share of all 80 scans of the rare digit that are found among those of the three."""
    examples = image_classification.read(root).train
    wanted = [e for e in examples if e.source.parent.name == HARD[RARE]]
    logits, _ = answers(bundle, wanted)
    return float((logits.argmax(1) == RARE).mean())


def test_one_more_of_the_frequent_does_not_outweigh_the_rare() -> None:
    def reached(accuracy: float, weighed: float | None) -> float:
        report = EpochReport(
            epoch=1,
            loss=0.5,
            val_loss=0.5,
            val_accuracy=accuracy,
            learning_rate=0.1,
            seconds=1,
            val_weighed=weighed,
        )
        return badness(0.5, right(report))

    assert reached(0.92, 0.66) > reached(0.85, 0.80)
    assert reached(0.92, None) < reached(0.85, None)


def test_bf16_trains_and_the_weights_stay_fp32(weights, unbalanced, tmp_path) -> None:
    told: dict[str, TrainReport] = {}
    for precision in ("fp32", "bf16"):
        wanted = asked(
            weights,
            unfreeze="last-2",
            adapt_epochs=2,
            adapt_batch=32,
            learning_rate=1e-4,
            adapt_precision=precision,
        )
        told[precision] = train(unbalanced, tmp_path / f"{precision}.bundle", wanted)
    exact, half = (told[name].adapted for name in ("fp32", "bf16"))
    assert exact is not None and half is not None
    assert (exact.precision, half.precision) == ("fp32", "bf16")
    assert half.epochs[-1].loss < half.epochs[0].loss
    assert half.epochs[0].loss != exact.epochs[0].loss, "computed in bf16"
    assert half.epochs[0].loss == pytest.approx(exact.epochs[0].loss, rel=0.05)
    with safe_open(Bundle(tmp_path / "bf16.bundle").root / "weights.safetensors", "np") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {kind for kind in kinds if kind.kind == "f"} == {np.dtype("float32")}
    golden = Bundle(tmp_path / "bf16.bundle").golden()
    assert golden.outputs["logits"].dtype == np.float32


def test_fsdp_without_a_gpu_is_refused_before_any_work(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = ["train", str(tmp_path / "none"), "-o", str(tmp_path / "b"), "--unfreeze", "all"]
    with pytest.raises(SystemExit) as caught:
        main([*line, "--strategy", "fsdp"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "expected GPUs for --strategy fsdp" in told
    assert "got: none on this machine" in told
    assert "--strategy ddp" in told
    assert not list(tmp_path.iterdir())
