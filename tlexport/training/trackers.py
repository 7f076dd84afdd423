"""Epochs told to TensorBoard and MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tlexport.environment import launch
from tlexport.errors import MissingDependency, ServerError
from tlexport.files import write_atomic
from tlexport.reports import EpochReport

RUNS = Path("runs")
"""Where TensorBoard and MLflow find theirs, below the folder one is in."""

TOKEN = "tlexport.trial"
"""The tag by which a run that was killed is found again."""

BRIEFLY = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Unless the caller's environment says otherwise. By its own defaults MLflow's client tries for
minutes; here what did not get through is sent again with the next epoch. It tells its makers that
it is used, which is nobody's to decide but the user's; and a run's address would stand in the
middle of `--json`."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What is told of: `name` for people, `folder` of its checkpoints, `asked` of it."""

    name: str
    folder: Path
    asked: Mapping[str, Any]


class _Book(Protocol):
    """What takes the epochs of a run, all of them again where it goes on."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch is through."""

    def close(self, status: str) -> None:
        """It ended as MLflow calls it: FINISHED, KILLED or FAILED."""


def hold(names: tuple[str, ...]) -> None:
    """Refuse what cannot be told to, before anything is computed.

    Raises:
        MissingDependency: what one of them writes with is not installed.
        ServerError: MLflow's store does not answer, or says no.
    """
    try:
        if "tensorboard" in names:
            from lightning.pytorch.loggers import TensorBoardLogger

            TensorBoardLogger(str(RUNS))
        if "mlflow" in names and not launch().rank:
            with _briefly():
                _hold_store(_uri())
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"what --log {' --log '.join(names)} writes with",
            got=str(error).strip().split("\n")[0],
            fix="install it: pip install 'tlexport[log]'; or leave it out",
        ) from error


@contextlib.contextmanager
def opened(names: tuple[str, ...], trial: Trial) -> Iterator[Callable[[EpochReport], None]]:
    """What to call with each epoch while the block runs; the first process alone tells."""
    kinds: dict[str, Callable[[Trial], _Book]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
    books = [] if launch().rank else [kinds[name](trial) for name in names]

    def tell(report: EpochReport) -> None:
        for book in books:
            book.epoch(report)

    status = "FAILED"
    try:
        yield tell
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        for book in books:
            book.close(status)


class _TensorBoard:
    """A folder of curves; a run that goes on writes them anew, from the first epoch."""

    def __init__(self, trial: Trial) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        self._logger = TensorBoardLogger(
            str(RUNS),
            name=trial.name,
            version=trial.folder.name,
            default_hp_metric=False,
            purge_step=0,  # hides what an earlier start of this run wrote
        )
        self._logger.log_hyperparams(dict(trial.asked))

    def epoch(self, report: EpochReport) -> None:
        """Written through, so that a killed run leaves it."""
        self._logger.log_metrics(_values(report), step=report.epoch)
        self._logger.experiment.flush()

    def close(self, status: str) -> None:
        """TensorBoard knows no status."""
        self._logger.finalize("success")


class _MLflow:
    """A run at MLflow. Training does not end with its server: what it missed it gets later."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._uri = _uri()
        self._logger: Any = None
        self._had: set[int] | None = None
        self._waiting: list[EpochReport] = []
        self._missed = False
        self._reached(self._send)

    def epoch(self, report: EpochReport) -> None:
        """Tell it, and what is still waiting."""
        self._waiting.append(report)
        self._reached(self._send)

    def close(self, status: str) -> None:
        """Tell what is still waiting, and how it ended."""
        if self._reached(self._send):
            self._reached(lambda: self._logger.finalize(status))
        if self._waiting:
            logger.warning(
                "MLflow lacks the epochs %s: they stand in the CSV file",
                ", ".join(str(report.epoch) for report in self._waiting),
            )

    def _reached(self, what: Callable[[], object]) -> bool:
        """Whether the server took it; that it did not is told once."""
        from mlflow.exceptions import MlflowException

        try:
            with _briefly():
                what()
        except (MlflowException, OSError) as error:
            if not self._missed:
                logger.warning(
                    "MLflow at %s does not take what it is told, training goes on: %s",
                    self._uri,
                    _said(error),
                )
            self._missed = True
            return False
        self._missed = False
        return True

    def _send(self) -> None:
        had = self._had if self._had is not None else self._begin()
        while self._waiting:
            report = self._waiting[0]
            if report.epoch not in had:
                self._logger.log_metrics(_values(report), step=report.epoch)
            had.add(report.epoch)
            del self._waiting[0]

    def _begin(self) -> set[int]:
        """The run, a new one or that of an earlier start; which epochs it has already."""
        from lightning.pytorch.loggers import MLFlowLogger
        from mlflow.tracking import MlflowClient

        token = self._token()
        earlier = _run_of(MlflowClient(self._uri), token)
        self._logger = MLFlowLogger(
            experiment_name=_experiment(),
            run_name=self._trial.name,
            tracking_uri=self._uri,
            run_id=earlier,
            tags={TOKEN: token},
            artifact_location=_artifacts(self._uri),
        )
        client, run = self._logger.experiment, self._logger.run_id
        had: set[int] = set()
        if earlier is not None:
            client.update_run(run, status="RUNNING")
            had = {metric.step for metric in client.get_metric_history(run, "val_accuracy")}
        self._logger.log_hyperparams(dict(self._trial.asked))
        self._had = had
        return had

    def _token(self) -> str:
        """What a run of this trial is known by: written down before there is one."""
        file = self._trial.folder / "mlflow"
        if not file.is_file():
            write_atomic(file, secrets.token_hex(16).encode())
        return file.read_text()


def _run_of(client: Any, token: str) -> str | None:
    """The run that an earlier start made; None where it made none, or somebody has cleared up."""
    experiment = client.get_experiment_by_name(_experiment())
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`{TOKEN}` = '{token}'")
    return found[0].info.run_id if found else None


def _uri() -> str:
    """Where MLflow keeps runs: what its own variable says, or a file here.

    A folder of files, once its default, is refused by MLflow since 3.7.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_store()}"


def _store() -> Path:
    return RUNS.absolute() / "mlflow.db"


def _artifacts(uri: str) -> str | None:
    """Beside the file; a server has a place of its own."""
    return (RUNS.absolute() / "mlartifacts").as_uri() if uri == f"sqlite:///{_store()}" else None


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "tlexport"


def _hold_store(uri: str) -> None:
    from lightning.pytorch.loggers import MLFlowLogger

    MLFlowLogger(tracking_uri="http://localhost")  # says whether MLflow is installed, asks nobody
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    name = _experiment()
    try:
        if uri == f"sqlite:///{_store()}":
            RUNS.mkdir(exist_ok=True)
        found = MlflowClient(uri).get_experiment_by_name(name)
    except (MlflowException, OSError) as error:
        raise ServerError(
            f"an MLflow server or store that answers at {uri}, for --log mlflow",
            got=_said(error),
            fix="start it, correct MLFLOW_TRACKING_URI, or unset it to write to "
            f"{RUNS / 'mlflow.db'}; or leave --log mlflow out: a CSV file is written in any case",
        ) from error
    if found is not None and found.lifecycle_stage != "active":
        raise ServerError(
            f"an experiment called {name!r} at {uri} that takes runs",
            got="one that was deleted",
            fix="restore it (mlflow experiments restore), or name another by "
            "MLFLOW_EXPERIMENT_NAME",
        )


def _values(report: EpochReport) -> dict[str, float]:
    """The numbers of an epoch that are some."""
    values = {
        "loss": report.loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        "val_weighed": report.val_weighed,
        "learning_rate": report.learning_rate,
    }
    return {name: value for name, value in values.items() if value is not None}


def _said(error: BaseException) -> str:
    """What is at the bottom of it, on a line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextlib.contextmanager
def _briefly() -> Iterator[None]:
    """Have MLflow fail soon, and keep to itself how its store is set up."""
    talking = logging.getLogger("mlflow")
    level = talking.level
    added = [name for name in BRIEFLY if name not in os.environ]
    os.environ.update({name: BRIEFLY[name] for name in added})
    talking.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # MLflow's own use of SQLAlchemy, which nobody here can change
            warnings.filterwarnings("ignore", message=".*``noload`` loader strategy is deprecated")
            yield
    finally:
        talking.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
