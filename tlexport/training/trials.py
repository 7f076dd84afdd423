"""The search over ways to adapt a network, kept in a file."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tlexport.errors import BundleError, OptionError
from tlexport.progress import Progress
from tlexport.reports import TrialReport
from tlexport.training.better import badness, right

RESULT = "result"
RANDOM = 4
"""Trials drawn at random before the sampler follows what was good, and before any is pruned."""

PATIENCE = 2
"""Epochs that every trial is given before it is held against the others."""

SEEDS = 2**32
STRIDE = 1_000_003
"""Between the seeds of searches: no two share the seeds of their trials."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One way to adapt: rate and decay of the optimiser, what trains, how inputs are changed."""

    learning_rate: float
    weight_decay: float
    unfreeze: str
    augment: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched, and `first`, which is tried before all else.

    `unfreeze` are the choices from the fewest blocks to the most, see `depths`; `augment` is the
    strongest, and a first weight decay of 0 is the only one.
    """

    first: Setting
    unfreeze: tuple[str, ...]
    augment: float
    learning_rate: tuple[float, float] = (1e-5, 1e-2)
    weight_decay: tuple[float, float] = (1e-4, 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """`file` keeps what was tried: its name must tell the data, network and options apart."""

    file: Path
    trials: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The best setting and its report, and the reports of all trials in order."""

    best: Setting
    report: TrialReport
    trials: tuple[TrialReport, ...]


Hopeless = Callable[[int, float], bool]
"""Told an epoch (from 1) and its badness: whether to stop, as others were better by then."""

Run = Callable[[Setting, Hopeless], TrialReport]
"""One trial; it must come out the same whenever it is run with the same setting."""


def depths(count: int, unfreeze: str) -> tuple[str, ...]:
    """What --unfreeze allows for a backbone of `count` blocks: head, last-1, last-2, last-4 ..."""
    if unfreeze == "head":
        return ("head",)
    most = count if unfreeze == "all" else int(unfreeze.removeprefix("last-"))
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    return ("head", *(f"last-{number}" for number in powers), unfreeze)


def search(run: Run, space: Space, plan: Plan, progress: Progress) -> Found:
    """Run trials until there are as many as planned; what an earlier search ran is not run again.

    A setting follows from the seed and what the trials before it came to, which the file keeps: a
    search that was interrupted goes on as if it had not been. A trial that was killed is run anew.
    The best is the one with the fewest wrong answers among those that ran to their end.

    Raises:
        BundleError: the file is damaged.
        OptionError: the loss of every trial is infinite or not a number.
    """
    study = _study(plan.file)
    while len(done := _done(study)) < plan.trials:
        progress("trials", len(done), plan.trials)
        study.sampler = optuna.samplers.TPESampler(
            seed=(plan.seed * STRIDE + len(done)) % SEEDS, n_startup_trials=RANDOM
        )
        if not done and not study.get_trials(states=[TrialState.WAITING]):
            study.enqueue_trial(_parameters(space.first, space))
        trial = study.ask()
        try:
            report = run(_drawn(trial, space), _watch(trial))
        except BaseException:  # an interrupt, too: it is run anew
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr(RESULT, msgspec.to_builtins(report))
        if report.pruned or not math.isfinite(report.val_loss):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, badness(report.val_loss, right(report)))
    progress("trials", len(done), plan.trials)
    return _found(done, space)


def _study(file: Path) -> optuna.Study:
    """What was tried before; a trial that was killed while it ran counts for nothing."""
    optuna.logging.set_verbosity(logging.ERROR)  # Ctrl-C would be a warning with a traceback
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name="train",
            direction="minimize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM, n_warmup_steps=PATIENCE),
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BundleError(
            f"what was tried before, in {str(file)!r}",
            got=f"{type(error).__name__}: {error}",
            fix="remove the file to search anew",
        ) from error
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    ended = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    return [trial for trial in ended if RESULT in trial.user_attrs]


def _drawn(trial: optuna.Trial, space: Space) -> Setting:
    low, high = _around(space.learning_rate, space.first.learning_rate)
    rate = trial.suggest_float("learning_rate", low, high, log=True)
    decay, depth, augment = 0.0, 0, 0.0
    if space.first.weight_decay:
        low, high = _around(space.weight_decay, space.first.weight_decay)
        decay = trial.suggest_float("weight_decay", low, high, log=True)
    if len(space.unfreeze) > 1:
        depth = trial.suggest_int("depth", 0, len(space.unfreeze) - 1)
    if space.augment:
        augment = trial.suggest_float("augment", 0.0, space.augment)
    return Setting(
        learning_rate=rate,
        weight_decay=decay,
        unfreeze=space.unfreeze[depth],
        augment=augment,
    )


def _around(bounds: tuple[float, float], value: float) -> tuple[float, float]:
    return min(*bounds, value), max(*bounds, value)


def _parameters(setting: Setting, space: Space) -> dict[str, float | int]:
    """A setting as Optuna keeps it: the inverse of `_drawn`."""
    return {
        "learning_rate": setting.learning_rate,
        "weight_decay": setting.weight_decay,
        "depth": space.unfreeze.index(setting.unfreeze),
        "augment": setting.augment,
    }


def _watch(trial: optuna.Trial) -> Hopeless:
    def hopeless(epoch: int, value: float) -> bool:
        trial.report(value, epoch)
        return bool(trial.should_prune())

    return hopeless


def _found(done: list[optuna.trial.FrozenTrial], space: Space) -> Found:
    reports = tuple(msgspec.convert(trial.user_attrs[RESULT], TrialReport) for trial in done)
    whole = [place for place, trial in enumerate(done) if trial.state == TrialState.COMPLETE]
    if not whole:
        raise OptionError(
            "a trial whose loss stays finite",
            got=f"none of {len(done)}",
            fix="pass a lower --learning-rate, or check --weights",
        )
    best = min(whole, key=lambda place: badness(reports[place].val_loss, right(reports[place])))
    values = done[best].params
    setting = Setting(
        learning_rate=values["learning_rate"],
        weight_decay=values.get("weight_decay", 0.0),
        unfreeze=space.unfreeze[values.get("depth", 0)],
        augment=values.get("augment", 0.0),
    )
    return Found(best=setting, report=reports[best], trials=reports)
