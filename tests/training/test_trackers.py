"""Runs are told to MLflow, go on there after a kill, and do not depend on it."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import digits as digit_scans
import pytest
from mlflow.tracking import MlflowClient

from tlexport.errors import ServerError
from tlexport.options import AdaptOptions, TrainOptions
from tlexport.stages.train import train
from tlexport.training import engine, trackers

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload:DeprecationWarning"
)  # MLflow asks for it

WANTED = TrainOptions(
    backbone="timm/test_efficientnet",
    weights="random",
    golden=4,
    adapt=AdaptOptions(unfreeze="last-1", adapt_epochs=2, logs=("mlflow",)),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and no server named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trackers.SERVER, raising=False)
    monkeypatch.setattr(logging.getLogger("mlflow.store.db"), "level", logging.WARNING)
    return tmp_path


def runs(place: Path) -> list:
    client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tlexport")
    return client.search_runs([experiment.experiment_id])


def test_a_killed_run_goes_on_in_the_same_run(place, monkeypatch) -> None:
    data = digit_scans.write(place / "digits", per_class=8)

    class Killed(BaseException):
        pass

    def die(module: engine.Adapting) -> None:
        if module.place[0] == 2:
            raise Killed
        began(module)

    began = engine.Adapting.on_validation_epoch_start
    with monkeypatch.context() as patch:
        patch.setattr(engine.Adapting, "on_validation_epoch_start", die)
        with pytest.raises(Killed):
            train(data, place / "b", WANTED)
    (run,) = runs(place)
    assert run.info.status != "FINISHED"
    first = run.data.metrics["val_loss"]

    report = train(data, place / "b", WANTED)
    assert report.adapted is not None
    assert report.adapted.resumed
    (run,) = runs(place)
    assert run.info.status == "FINISHED"
    assert run.data.params["backbone"] == "timm/test_efficientnet"
    assert run.data.params["unfreeze"] == "last-1"
    client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    told = {
        entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, "val_loss")
    }
    assert told == {epoch.epoch: epoch.val_loss for epoch in report.adapted.epochs}
    assert told[1] == first


def test_a_server_that_is_not_there_is_told_of_before_the_work(place, monkeypatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv(trackers.SERVER, f"http://127.0.0.1:{port}")
    monkeypatch.setitem(trackers.HURRIED, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ServerError, match=f"MLflow to take a run at http://127.0.0.1:{port}"
    ) as caught:
        train(place / "none", place / "b", WANTED)
    assert "refused" in caught.value.got
    assert not list(place.iterdir())


def test_training_goes_on_where_mlflow_is_lost(place, caplog) -> None:
    (tracker,) = trackers.trackers(("mlflow",), "some")
    tracker.log_hyperparams({"rate": 0.1})
    tracker.log_metrics({"loss": 2.0}, step=1)
    tracker._run_id = "unknown"  # as of a server whose database is another now
    with caplog.at_level(logging.WARNING, "tlexport"):
        tracker.log_metrics({"loss": 1.0}, step=2)
        tracker.log_metrics({"loss": 0.5}, step=3)
        tracker.finalize()
    assert len([each for each in caplog.records if "training goes on" in each.message]) == 1
    assert runs(place)[0].data.metrics == {"loss": 2.0}
