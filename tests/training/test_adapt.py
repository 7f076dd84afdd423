"""Weights are adapted from the frozen head on, whatever interrupts it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import digits as digit_scans
import msgspec
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, MissingDependency, OptionError
from tlexport.files import cache_folder
from tlexport.options import AdaptOptions, TrainOptions
from tlexport.reports import TrainReport
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.tasks import Example, image_classification
from tlexport.training import checkpoint, engine, finish
from tlexport.training.features import digest_of_state
from tlexport.training.stream import Source

TINY = "timm/test_efficientnet"
ADAPT = {
    "unfreeze": "all",
    "adapt_epochs": 3,
    "adapt_batch": 16,
    "learning_rate": 5e-5,
    "weight_decay": 0.05,
    "augment": 0.1,
    "layer_decay": 0.9,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some weights of the tiny network, as if somebody had trained it."""
    path = tmp_path_factory.mktemp("adapt") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def options(weights: Path) -> Callable[..., TrainOptions]:
    def made(**adapt: object) -> TrainOptions:
        return TrainOptions(
            backbone=TINY, weights=str(weights), golden=4, adapt=AdaptOptions(**(ADAPT | adapt))
        )

    return made


@pytest.fixture(scope="module")
def asked(weights: Path) -> list[str]:
    """The same options as words of a command."""
    adapt = (f"--{name.replace('_', '-')}={value}" for name, value in ADAPT.items())
    return ["--backbone", TINY, "--weights", str(weights), "--golden", "4", *adapt]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_scans.write(tmp_path_factory.mktemp("adapt") / "digits", per_class=14)


@pytest.fixture(scope="module")
def whole(
    scans: Path, options, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainReport]:
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("adapt") / "whole.bundle"
    return output, train(scans, output, options())


def verify_answers(bundle: Path) -> bool:
    """Whether the network answers the golden samples as it did when they were kept."""
    golden = Bundle(bundle).golden()
    answers = networks.answers(networks.network(Bundle(bundle)), golden.inputs, ["logits"])
    return np.allclose(answers["logits"], golden.outputs["logits"], atol=1e-4)


def digest(bundle: Path) -> str:
    return digest_of_state(networks.network(Bundle(bundle)))


def test_the_whole_network_is_adapted_and_never_worse_than_its_frozen_head(whole) -> None:
    output, report = whole
    adapted = report.adapted
    assert adapted is not None
    assert adapted.trained_parameters == adapted.parameters
    assert len(adapted.blocks) == adapted.of_blocks > 3
    assert [epoch.epoch for epoch in adapted.epochs] == [1, 2, 3]
    assert adapted.best_epoch > 0
    assert report.best.val_accuracy >= adapted.frozen_val_accuracy
    assert report.best.epochs == adapted.best_epoch
    told = Bundle(output).report("train", TrainReport)
    assert told == report
    lines = (output / "reports/train.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,loss,val_loss,val_accuracy")
    assert len(lines) == 4
    page = (output / "reports/train.html").read_text()
    assert "polyline" in page
    assert "http" not in page
    assert not output.with_name("whole.bundle.epochs.csv").exists()
    assert not list((cache_folder() / "runs").glob("*/*")), "nothing is left to go on from"


def test_random_weights_learn_from_nothing(scans, tmp_path) -> None:
    adapt = AdaptOptions(unfreeze="all", adapt_epochs=6, learning_rate=0.01, layer_decay=1.0)
    wanted = TrainOptions(backbone=TINY, weights="random", golden=4, adapt=adapt)
    report = train(scans, tmp_path / "fresh.bundle", wanted)
    assert report.adapted is not None
    losses = [epoch.loss for epoch in report.adapted.epochs]
    assert losses[0] > 2
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_that_diverges_is_stopped_and_told_of(scans, options, tmp_path) -> None:
    report = train(scans, tmp_path / "wild.bundle", options(learning_rate=1e30, clip=0))
    assert report.adapted is not None
    assert [epoch.val_loss for epoch in report.adapted.epochs][-1] is None
    assert report.adapted.best_epoch == 0
    assert report.accuracy.value == report.adapted.frozen_val_accuracy
    assert "not finite" in (tmp_path / "wild.bundle/reports/train.html").read_text()
    assert verify_answers(tmp_path / "wild.bundle")


def test_the_bundle_answers_as_the_report_says(whole, scans) -> None:
    from tlexport.stages.evaluate import evaluate

    output, report = whole
    held = evaluate(output, scans)
    assert held.accuracy.value >= report.best.val_accuracy - 0.1
    assert verify_answers(output)


@pytest.mark.timeout(400)
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(whole, scans, asked, tmp_path):
    output = tmp_path / "killed.bundle"
    runs = cache_folder() / "runs"
    start = (
        "import sys; from tlexport.training import engine; engine.SEGMENT = 3; "
        "from tlexport.cli import main; main(sys.argv[1:])"
    )
    draw, stops, seen = random.Random(1), [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], 0.0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", start, "train", str(scans), "-o", str(output), *asked],
            stderr=subprocess.PIPE,
            text=True,
        )
        wanted, until = draw.uniform(0.05, 0.9), None
        while process.poll() is None:
            newest = max((p.stat().st_mtime for p in runs.glob("*/*/last.ckpt")), default=0.0)
            if newest > seen and until is None and stops:
                seen, until = newest, time.monotonic() + wanted
            if until is not None and time.monotonic() > until:
                process.send_signal(stops[-1])
                break
            time.sleep(0.01)
        _, told = process.communicate(timeout=60)
        seen = max((p.stat().st_mtime for p in runs.glob("*/*/last.ckpt")), default=0.0)
        if process.returncode == 0:
            break
        assert not output.exists()
        if stops.pop() == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
            continue
        assert process.returncode == 130
        kept = "What is done so far is kept: the same command goes on from there."
        assert [line for line in told.split("\n") if line] == [kept, "Stopped."]
    assert not stops
    assert digest(output) == digest(whole[0])
    report = Bundle(output).report("train", TrainReport)
    assert report is not None
    assert report.adapted is not None
    assert report.adapted.resumed
    untimed = [msgspec.structs.replace(epoch, seconds=0.0) for epoch in report.adapted.epochs]
    theirs = [msgspec.structs.replace(e, seconds=0.0) for e in whole[1].adapted.epochs]
    assert untimed == theirs
    assert not list(runs.glob("*/*"))


@pytest.mark.timeout(300)
def test_two_processes_share_the_steps_and_one_writes(whole, scans, asked, tmp_path) -> None:
    output = tmp_path / "two.bundle"
    made = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tlexport", "train", str(scans), "-o", str(output)),
            *("--json", *asked),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert made.returncode == 0, made.stderr
    report = msgspec.json.decode(made.stdout, type=TrainReport)  # printed once
    assert report.adapted is not None
    assert report.adapted.processes == 2
    alone = whole[1]
    assert report.best.val_accuracy == alone.best.val_accuracy
    for mine, theirs in zip(report.adapted.epochs, alone.adapted.epochs, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-2)
        assert mine.val_loss == pytest.approx(theirs.val_loss, rel=1e-2)
    assert Bundle(output).report("train", TrainReport) == report


@pytest.mark.timeout(300)
def test_two_processes_search_the_same_settings(scans, asked, tmp_path) -> None:
    output = tmp_path / "searched.bundle"
    made = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tlexport", "train", str(scans), "-o", str(output)),
            *("--json", *asked, "--trials", "2", "--adapt-epochs", "1"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert made.returncode == 0, made.stderr
    report = msgspec.json.decode(made.stdout, type=TrainReport)
    assert len(report.trials) == 2
    assert len({trial.learning_rate for trial in report.trials}) == 2


def test_each_process_has_half_of_every_step_and_all_together_have_it_all() -> None:
    examples = [Example(source=None, label=n % 3, digest=str(n), size=n % 7) for n in range(101)]
    one, *two = (
        Source(
            task=image_classification,
            learner=None,
            examples=examples,
            most=8,
            weights=np.array([1.0, 2.0, 4.0]),
            rank=rank,
            count=count,
        )
        for rank, count in ((0, 1), (0, 2), (1, 2))
    )
    steps = one.steps(seed=3, epoch=1)
    assert sorted(row for step in steps for row in step) == list(range(101))
    assert [list(step) for step in two[0].steps(3, 1)] == [list(step) for step in steps]
    assert [list(step) for step in one.steps(3, 2)] != [list(step) for step in steps]
    for step in steps:
        assert sorted([*step[0::2], *step[1::2]]) == sorted(step)


def test_a_search_tries_settings_and_keeps_the_best(scans, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # where TensorBoard's files go
    adapt = {"adapt_epochs": 2, "weight_decay": 0.0, "logs": ("tensorboard",)}
    wanted = msgspec.structs.replace(options(**adapt), trials=3)
    report = train(scans, tmp_path / "searched.bundle", wanted)
    assert len(report.trials) == 3
    assert report.best.val_accuracy == max(trial.val_accuracy for trial in report.trials)
    assert report.trials[0].learning_rate == 5e-5
    assert len({trial.learning_rate for trial in report.trials}) == 3
    assert {trial.weight_decay for trial in report.trials} == {0.0}, "none was asked for"
    assert len(list(tmp_path.glob("runs/*/*/events*"))) == 3
    assert "<h2>Trials</h2>" in (tmp_path / "searched.bundle/reports/train.html").read_text()


def test_wrong_wishes(scans, options, tmp_path, monkeypatch) -> None:
    with pytest.raises(OptionError, match=r"up to the backbone's \d+ blocks"):
        train(scans, tmp_path / "b", options(unfreeze="last-99"))
    with pytest.raises(OptionError, match="computed once and kept"):
        AdaptOptions(augment=0.5)
    with pytest.raises(OptionError, match="one of them"):
        AdaptOptions(unfreeze="all", lora=4)
    for wrong in ("some", "last-0", "last", "first-1", "last--1", ""):
        with pytest.raises(OptionError, match="--unfreeze head, last-N or all"):
            AdaptOptions(unfreeze=wrong)
    with pytest.raises(OptionError, match="linear layers that repeat"):
        train(scans, tmp_path / "b", options(unfreeze="head", lora=4))
    with pytest.raises(OptionError, match="torchrun"):
        train(scans, tmp_path / "b", options(devices=2))
    with pytest.raises(OptionError, match="--log"):
        AdaptOptions(unfreeze="all", logs=("wandb",))
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="GPUs for --strategy fsdp"):
            train(scans, tmp_path / "b", options(strategy="fsdp"))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(MissingDependency, match="mlflow"):
        train(scans, tmp_path / "b", options(logs=("mlflow",)))
    assert not (tmp_path / "b").exists()


def test_a_second_run_of_the_same_command_waits_its_turn(tmp_path) -> None:
    first = checkpoint.alone(tmp_path)
    with first, pytest.raises(BundleError, match="one run"), checkpoint.alone(tmp_path):
        raise AssertionError


def test_adapters_are_merged_and_the_export_has_none(tiny_bert, tmp_path) -> None:
    import onnx

    data = tmp_path / "texts.csv"
    words = {"good": "a warm and happy film", "bad": "a cold and rainy day"}
    lines = [f"{text} number {n},{label}" for n in range(16) for label, text in words.items()]
    data.write_text("text,label\n" + "\n".join(lines) + "\n")
    changed = AdaptOptions(unfreeze="last-1", augment=0.2)
    backbone = f"transformers/{tiny_bert}"
    wanted = TrainOptions(task="text-classification", backbone=backbone, adapt=changed)
    with pytest.raises(OptionError, match="--augment for images or clips"):
        train(data, tmp_path / "none.bundle", wanted)
    graphs = []
    for name, adapt in (
        ("frozen", AdaptOptions()),
        ("lora", AdaptOptions(lora=4, adapt_epochs=2, adapt_batch=8, adapt_precision="bf16")),
    ):
        wanted = TrainOptions(
            task="text-classification",
            backbone=backbone,
            golden=4,
            adapt=adapt,
        )
        report = train(data, tmp_path / f"{name}.bundle", wanted)
        export(tmp_path / f"{name}.bundle")
        graphs.append(onnx.load(tmp_path / f"{name}.bundle/artifacts/onnx-fp32/model.onnx").graph)
    assert report.adapted is not None
    assert 0 < report.adapted.trained_parameters < report.adapted.parameters
    assert report.adapted.unfreeze == "adapters of rank 4"
    assert report.adapted.precision == "bf16"
    assert verify(tmp_path / "lora.bundle").passed
    frozen, lora = graphs
    assert [node.op_type for node in lora.node] == [node.op_type for node in frozen.node]
    assert {each.name for each in lora.initializer} == {each.name for each in frozen.initializer}


def die(module: engine.Adapting, kind: type[BaseException]) -> None:
    """In the validation of the second epoch."""
    if module.place[0] == 2:
        raise kind
    module._sums = torch.zeros(engine.SUMS, dtype=torch.float64)


def test_a_run_that_was_killed_after_its_last_epoch_only_writes(
    scans, options, tmp_path, monkeypatch
) -> None:
    wanted = options(adapt_epochs=2, layer_decay=0.8)

    class Killed(BaseException):
        pass

    live = tmp_path / "late.bundle.epochs.csv"
    with monkeypatch.context() as patch:
        patch.setattr(engine.Adapting, "on_validation_epoch_start", lambda self: die(self, Killed))
        with pytest.raises(Killed):
            train(scans, tmp_path / "late.bundle", wanted)
    assert len(live.read_text().splitlines()) == 2  # the names and the first epoch
    with monkeypatch.context() as patch:
        patch.setattr(finish, "write", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(scans, tmp_path / "late.bundle", wanted)
    assert not (tmp_path / "late.bundle").exists()
    assert len(live.read_text().splitlines()) == 3, "both epochs, though another run had the first"
    report = train(scans, tmp_path / "late.bundle", wanted)
    assert not live.exists()
    assert report.adapted is not None
    assert report.adapted.resumed
    assert [epoch.epoch for epoch in report.adapted.epochs] == [1, 2]
