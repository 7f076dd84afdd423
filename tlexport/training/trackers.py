"""Where a run is told besides its CSV: TensorBoard, MLflow."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tlexport.errors import MissingDependency, ServerError

logger = logging.getLogger(__name__)

FOLDER = Path("runs")
"""Below the working directory, as TensorBoard has it."""

SERVER = "MLFLOW_TRACKING_URI"
EXPERIMENT = "tlexport"
HURRIED = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Before the work: by itself MLflow tries a server that is not there for minutes."""


def hold(names: tuple[str, ...]) -> None:
    """Refuse, before anything is computed, what could not be written to.

    Raises:
        MissingDependency: what one of them writes with is not installed.
        ServerError: MLFLOW_TRACKING_URI names a place where MLflow cannot write.
    """
    trackers(names, "")
    if "mlflow" not in names or SERVER not in os.environ:
        return  # what is not there yet, the run makes
    from mlflow.tracking import MlflowClient

    try:
        with _hurried():
            MlflowClient(_place()).search_experiments(max_results=1)
    except Exception as error:  # MLflow's own, and whatever its stores let through
        raise ServerError(
            f"MLflow to take a run at {_place()} ({SERVER})",
            got=str(error).strip().split("\n")[0],
            fix=f"start that server, correct {SERVER}, or unset it: the run is then written to "
            f"{FOLDER}/mlflow.db; or leave out --log mlflow",
        ) from error


def trackers(names: tuple[str, ...], run: str) -> list[Any]:
    """Lightning's own loggers for a run, which goes on in MLflow where it was killed.

    Raises:
        MissingDependency: what one of them writes with is not installed.
    """
    made: list[Any] = []
    try:
        if "tensorboard" in names:
            made.append(TensorBoardLogger(str(FOLDER), name=run))
        if "mlflow" in names:
            made.append(Mlflow(experiment_name=EXPERIMENT, run_name=run, tracking_uri=_place()))
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"what --log {' --log '.join(names)} writes with",
            got=str(error).strip().split("\n")[0],
            fix="install it: pip install 'tlexport[log]'; or leave it out",
        ) from error
    return made


class Mlflow(MLFlowLogger):
    """Lightning's, and training does not depend on it.

    A server that no longer answers is told of once and not asked again: each question would take
    minutes, and the CSV has every epoch.
    """

    _lost = False

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """What a run is made with, when it begins or goes on."""
        self._try(self._take_up)
        self._try(lambda: super(Mlflow, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """What an epoch came to."""
        self._try(lambda: super(Mlflow, self).log_metrics(metrics, step))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """How a run ended."""
        self._try(lambda: super(Mlflow, self).finalize(status))

    def _take_up(self) -> None:
        """Go on with the newest run of this name that has not come to its end, if there is one."""
        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it tells of each table
        if SERVER not in os.environ:
            FOLDER.mkdir(exist_ok=True)
        experiment = self._mlflow_client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            self._mlflow_client.create_experiment(EXPERIMENT)
            return
        query = f"attributes.run_name = '{self._run_name}' and attributes.status != 'FINISHED'"
        found = self._mlflow_client.search_runs([experiment.experiment_id], query, max_results=1)
        if found:
            self._run_id = found[0].info.run_id

    def _try(self, act: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            act()
        except Exception as error:  # MLflow's own, and whatever its stores let through
            self._lost = True
            logger.warning(
                "MLflow at %s no longer takes this run (%s): training goes on, and its CSV has "
                "every epoch",
                self._tracking_uri,
                str(error).strip().split("\n")[0],
            )


def _place() -> str:
    """Where MLflow is told to write, else a database below FOLDER: it takes no plain files now."""
    return os.environ.get(SERVER) or f"sqlite:///{FOLDER.absolute()}/mlflow.db"


@contextmanager
def _hurried() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in HURRIED}
    os.environ.update(HURRIED)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
