"""MLflow and TensorBoard get every epoch once, and training never waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import digits as digit_scans
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tlexport.errors import ServerError
from tlexport.options import AdaptOptions, TrainOptions
from tlexport.reports import EpochReport, TrainReport
from tlexport.stages.train import train
from tlexport.training import engine, trackers

TOLD = ("loss", "val_loss", "val_accuracy", "learning_rate")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_scans.write(tmp_path_factory.mktemp("trackers") / "digits", per_class=6)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def options(*names: str) -> TrainOptions:
    adapt = AdaptOptions(unfreeze="all", adapt_epochs=3, adapt_batch=16, logs=names)
    return TrainOptions(
        backbone="timm/test_efficientnet", weights="random", golden=4, patience=9, adapt=adapt
    )


def stopped_in_epoch(number: int) -> Callable[[engine.Adapting], None]:
    """As Ctrl-C stops it, in the validation of that epoch."""
    real = engine.Adapting.on_validation_epoch_start

    def hook(module: engine.Adapting) -> None:
        if module.place[0] == number:
            raise KeyboardInterrupt
        real(module)

    return hook


def close(found: dict[int, float], epochs: tuple[EpochReport, ...], name: str) -> bool:
    return found == pytest.approx({epoch.epoch: getattr(epoch, name) for epoch in epochs})


def history(client: MlflowClient, run: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]


def test_a_resumed_run_goes_on_in_the_same_run_and_tells_each_epoch_once(
    scans, tmp_path, monkeypatch, capfd
) -> None:
    wanted = options("mlflow", "tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(engine.Adapting, "on_validation_epoch_start", stopped_in_epoch(2))
        with pytest.raises(KeyboardInterrupt):
            train(scans, tmp_path / "a.bundle", wanted)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tlexport")
    (first,) = client.search_runs([experiment.experiment_id])
    assert first.info.status == "KILLED"
    assert [step for step, _ in history(client, first.info.run_id, "loss")] == [1]

    report = train(scans, tmp_path / "a.bundle", wanted)
    assert report.adapted is not None
    assert report.adapted.resumed
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("a-")
    asked = {"unfreeze": "all", "adapt_epochs": "3", "adapt_batch": "16", "seed": "0"}
    asked |= {"backbone": "timm/test_efficientnet", "weights": report.weights, "precision": "fp32"}
    asked |= {"learning_rate": "0.001", "train_examples": str(report.train_examples)}
    told = run.data.params
    asked["precision"] = report.adapted.precision
    assert {name: told[name] for name in asked} == asked
    for name in TOLD:
        found = history(client, run.info.run_id, name)
        assert [step for step, _ in found] == [1, 2, 3]
        assert close(dict(found), report.adapted.epochs, name)
    assert curves(tmp_path / "runs", "loss", report)
    assert capfd.readouterr().err == "", "neither library talks into the terminal"


def curves(runs: Path, name: str, report: TrainReport) -> bool:
    """Whether TensorBoard shows one curve with each epoch of the report once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in runs.glob("*/*/events*")}
    shown = EventAccumulator(str(folder)).Reload().Scalars(name)
    assert [event.step for event in shown] == [1, 2, 3]
    return close({e.step: e.value for e in shown}, report.adapted.epochs, name)


@pytest.mark.parametrize(
    ("uri", "got"), [("http://127.0.0.1:1", "Connection"), ("nothing://x", "nothing")]
)
def test_a_server_that_does_not_answer_is_told_before_any_work(
    uri, got, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(ServerError, match=f"answers at {uri}") as caught:
        train(tmp_path / "nothing there", tmp_path / "a.bundle", options("mlflow"))
    assert time.monotonic() - began < 10
    assert got in caught.value.got
    assert "MLFLOW_TRACKING_URI" in caught.value.fix


def test_a_deleted_experiment_is_told_before_any_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    trackers.hold(("mlflow",))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    client.delete_experiment(client.create_experiment("mine"))
    with pytest.raises(ServerError, match="'mine'"):
        trackers.hold(("mlflow",))


def epoch(number: int) -> EpochReport:
    return EpochReport(
        epoch=number, loss=0.5, val_loss=None, val_accuracy=0.9, learning_rate=0.1, seconds=1.0
    )


def test_what_a_silent_server_missed_is_told_later(tmp_path, monkeypatch, caplog) -> None:
    from lightning.pytorch.loggers import MLFlowLogger

    real, silent = MLFlowLogger.log_metrics, [2, 3]

    def log_metrics(self: MLFlowLogger, values: dict[str, float], step: int) -> None:
        if silent:
            if step == 1:
                return real(self, values, step)
            silent.pop()
            raise MlflowException("the server is being restarted")
        return real(self, values, step)

    monkeypatch.setattr(MLFlowLogger, "log_metrics", log_metrics)
    trial = trackers.Trial(name="a", folder=tmp_path / "kept", asked={"seed": 0})
    trackers.hold(("mlflow",))
    with trackers.opened(("mlflow",), trial) as tell:
        for number in (1, 2, 3):
            tell(epoch(number))
        assert caplog.text.count("training goes on") == 1, "not once an epoch"
        assert "being restarted" in caplog.text
        tell(epoch(4))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tlexport")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [step for step, _ in history(client, run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert not client.get_metric_history(run.info.run_id, "val_loss"), "none of them was finite"
    assert run.info.status == "FINISHED"
    client.delete_run(run.info.run_id)
    with trackers.opened(("mlflow",), trial) as tell:
        tell(epoch(1))
    (anew,) = client.search_runs([experiment.experiment_id])
    assert anew.info.run_id != run.info.run_id, "what was deleted is not gone on in"


def test_a_run_that_was_killed_as_soon_as_it_was_made_is_gone_on_in(tmp_path, monkeypatch) -> None:
    from lightning.pytorch.loggers import MLFlowLogger

    trial = trackers.Trial(name="a", folder=tmp_path / "kept", asked={"seed": 0})
    trackers.hold(("mlflow",))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MLFlowLogger, "log_hyperparams", interrupted)
        with trackers.opened(("mlflow",), trial):
            pass
    with trackers.opened(("mlflow",), trial) as tell:
        tell(epoch(1))
    other = trackers.Trial(name="a", folder=tmp_path / "other", asked={"seed": 0})
    with trackers.opened(("mlflow",), other) as tell:
        tell(epoch(1))
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tlexport")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"], "one each"
    assert all(run.data.params == {"seed": "0"} for run in runs)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_server_that_went_away_for_good_costs_a_warning(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    trial = trackers.Trial(name="a", folder=tmp_path / "kept", asked={})
    began = time.monotonic()
    with trackers.opened(("mlflow",), trial) as tell:
        tell(epoch(1))
        tell(epoch(2))
    assert time.monotonic() - began < 10
    assert "MLflow lacks the epochs 1, 2" in caplog.text


def test_mlflow_prints_no_address_into_the_report() -> None:
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert not MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()
    with trackers._briefly():
        assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()
    assert not MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()


def test_of_several_processes_the_first_alone_tells(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    trial = trackers.Trial(name="a", folder=tmp_path / "kept", asked={})
    names = ("tensorboard", "mlflow")
    trackers.hold(names)
    with trackers.opened(names, trial) as tell:
        tell(epoch(1))
    assert not list(tmp_path.iterdir())
