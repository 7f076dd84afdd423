"""Which settings are worth a try, and in which order."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tlexport.errors import BundleError
from tlexport.reports import TunedSettings, TuneTrial

DELAYS_US = (0, 500, 2000, 5000)
"""Longest waits for batch mates that are tried."""

RESULT = "result"
BETTER = 1.01
"""Times the best throughput that counts as better."""


def space(cores: int, max_batch: int) -> list[TunedSettings]:
    """Every setting that differs in what the server does.

    Instances and threads fill the cores or leave them alone by what does not divide: more threads
    than cores are known to serve slower. Without batching (a maximum of 1) there is no queue to
    wait in.
    """
    budgets = sorted({(copies, cores // copies) for copies in range(1, cores + 1)} | {(1, 1)})
    found = []
    for copies, threads in budgets:
        found.append(TunedSettings(instances=copies, threads=threads, max_batch=min(1, max_batch)))
        size = 2
        while size <= max_batch:
            for delay in DELAYS_US:
                for preferred in _preferred(size, delay):
                    found.append(
                        TunedSettings(
                            instances=copies,
                            threads=threads,
                            max_batch=size,
                            queue_delay_us=delay,
                            preferred=preferred,
                        )
                    )
            size *= 2
    return found


def _preferred(size: int, delay: int) -> list[tuple[int, ...]]:
    """The largest alone, as it is unasked; half of it, too, where a request may wait for mates."""
    return [(), (size // 2, size)] if delay and size > 2 else [()]


class Search:
    """An Optuna study over a space, kept in a file: what was tried once is not tried again."""

    def __init__(
        self, file: Path, everything: list[TunedSettings], sampled: bool, seed: int
    ) -> None:
        optuna.logging.set_verbosity(logging.ERROR)
        self._everything = everything
        try:
            backend = JournalFileBackend(str(file))
            self._study = optuna.create_study(
                storage=JournalStorage(backend),
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed),
            )
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise BundleError(
                f"what was tried before, in {str(file)!r}",
                got=f"{type(error).__name__}: {error}",
                fix="pass --force to forget it",
            ) from error
        for trial in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # it was killed
        self.sampled = sampled
        self._order = [everything[0]]
        rest = np.random.default_rng(seed).permutation(len(everything) - 1) + 1
        self._order += [everything[place] for place in rest]

    def tried(self) -> dict[TunedSettings, TuneTrial]:
        """What came of what was tried, in that order; now or in an earlier run."""
        found = {}
        for trial in self._study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            result = msgspec.convert(trial.user_attrs[RESULT], TuneTrial)
            found[result.settings] = result
        return found

    def next(self) -> Iterator[tuple[Any, TunedSettings]]:
        """What to try next, again and again: the default first, then by the sampler or in turn."""
        known = set(self.tried())
        for settings in self._order if not self.sampled else self._order[:1]:
            if settings not in known:
                yield self._asked(settings), settings
        while self.sampled and len(known := set(self.tried())) < len(self._everything):
            trial, settings = self._suggested(known)
            yield trial, settings

    def drop(self, trial: optuna.Trial) -> None:
        """Forget a trial that was not made."""
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def tell(self, trial: optuna.Trial, result: TuneTrial, score: float) -> None:
        """Keep what came of a trial."""
        trial.set_user_attr(RESULT, msgspec.to_builtins(result))
        self._study.tell(trial, score)

    def _asked(self, settings: TunedSettings) -> optuna.Trial:
        self._study.enqueue_trial(_parameters(settings))
        trial = self._study.ask()
        self._drawn(trial)
        return trial

    def _suggested(self, known: set[TunedSettings]) -> tuple[optuna.Trial, TunedSettings]:
        """What the sampler wants; the nearest in the space that was not tried yet."""
        trial = self._study.ask()
        wanted = self._drawn(trial)
        left = [settings for settings in self._everything if settings not in known]
        return trial, min(left, key=lambda each: _distance(_parameters(each), wanted))

    def _drawn(self, trial: optuna.Trial) -> dict[str, str | int]:
        choices: dict[str, list[Any]] = {}
        for settings in self._everything:
            for name, value in _parameters(settings).items():
                if value not in choices.setdefault(name, []):
                    choices[name].append(value)
        return {name: trial.suggest_categorical(name, each) for name, each in choices.items()}


def _parameters(settings: TunedSettings) -> dict[str, str | int]:
    """A setting as Optuna keeps it."""
    return {
        "budget": f"{settings.instances}x{settings.threads}",
        "max_batch": settings.max_batch,
        "queue_delay_us": settings.queue_delay_us,
        "preferred": "half" if settings.preferred else "largest",
    }


def _distance(ours: dict[str, str | int], wanted: dict[str, str | int]) -> tuple[bool, bool, int]:
    """How far a setting is from what was wanted, what matters most first."""
    differing = sum(ours[name] != wanted[name] for name in ours)
    return ours["budget"] != wanted["budget"], ours["max_batch"] != wanted["max_batch"], differing
