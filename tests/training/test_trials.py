from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from tlexport.errors import BundleError, OptionError
from tlexport.progress import silent
from tlexport.reports import TrialReport
from tlexport.training.better import badness
from tlexport.training.trials import Found, Hopeless, Plan, Setting, Space, depths, search

SPACE = Space(
    first=Setting(learning_rate=3e-3, weight_decay=1e-2, unfreeze="last-2", augment=0.2),
    unfreeze=depths(2, "last-2"),
    augment=0.5,
    learning_rate=(1e-5, 1.0),
)
EPOCHS = 5


class Killed(Exception):
    pass


def training(
    asked: list[Setting], kill: Callable[[int, int], bool] = lambda trial, epoch: False
) -> Callable[[Setting, Hopeless], TrialReport]:
    """A small network fitted to real digits, as the engine would; it may be killed at an epoch."""
    values, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(values[:400]).float() / 16
    targets = torch.from_numpy(labels[:400]).long()

    def run(setting: Setting, hopeless: Hopeless) -> TrialReport:
        asked.append(setting)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = torch.nn.Sequential(
                torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
            )
        network[0].requires_grad_(setting.unfreeze != "head")
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
        )
        losses: list[float] = []
        pruned = False
        for epoch in range(1, EPOCHS + 1):
            if kill(len(asked), epoch):
                raise Killed
            for rows in torch.randperm(300, generator=generator).split(50):
                noise = torch.randn(len(rows), 64, generator=generator) * setting.augment
                optimiser.zero_grad()
                answer = network(inputs[rows] + noise)
                torch.nn.functional.cross_entropy(answer, targets[rows]).backward()
                optimiser.step()
            with torch.inference_mode():
                answer = network(inputs[300:])
                losses.append(float(torch.nn.functional.cross_entropy(answer, targets[300:])))
            right = float((answer.argmax(1) == targets[300:]).float().mean())
            if hopeless(epoch, badness(losses[-1], right)):
                pruned = True
                break
        return TrialReport(
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            epochs=losses.index(min(losses)) + 1,
            val_loss=min(losses),
            val_accuracy=right,
            unfreeze=setting.unfreeze,
            augment=setting.augment,
            pruned=pruned,
        )

    return run


def searched(file: Path, seed: int = 0, trials: int = 14) -> tuple[Found, list[Setting]]:
    asked: list[Setting] = []
    plan = Plan(file=file, trials=trials, seed=seed)
    return search(training(asked), SPACE, plan, silent), asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, list[Setting]]:
    return searched(tmp_path_factory.mktemp("whole") / "trials.journal")


def test_the_best_of_all_is_found_and_the_hopeless_are_stopped(
    whole: tuple[Found, list[Setting]],
) -> None:
    found, asked = whole
    assert asked[0] == SPACE.first
    assert len(found.trials) == len(asked) == 14
    ended = [trial for trial in found.trials if not trial.pruned]
    assert found.report == min(ended, key=lambda t: badness(t.val_loss, t.val_accuracy))
    assert found.best == asked[found.trials.index(found.report)]
    assert found.report.val_accuracy >= found.trials[0].val_accuracy
    assert 0 < len(ended) < 14
    assert {setting.unfreeze for setting in asked} <= {"head", "last-1", "last-2"}
    assert all(0 <= setting.augment <= 0.5 for setting in asked)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    whole: tuple[Found, list[Setting]], tmp_path: Path, epoch: int
) -> None:
    file = tmp_path / "trials.journal"
    plan = Plan(file=file, trials=14, seed=0)
    for after in (1, 1, 4, 6):  # trials of this run, the last of them killed
        with pytest.raises(Killed):
            run = training([], lambda trial, now, after=after: (trial, now) == (after, epoch))
            search(run, SPACE, plan, silent)
    found, asked = searched(file)
    assert found == whole[0]
    assert asked == whole[1][-len(asked) :]
    assert len(asked) == 14 - 3 - 5
    again, none = searched(file)
    assert again == found
    assert none == []


def test_what_a_killed_process_leaves_behind_is_enough(
    whole: tuple[Found, list[Setting]], tmp_path: Path
) -> None:
    file, left = tmp_path / "trials.journal", tmp_path / "left.journal"

    def snapshot(trial: int, epoch: int) -> bool:
        if (trial, epoch) == (6, 2):
            shutil.copy(file, left)  # no trial is told to have ended, as if by SIGKILL
            raise Killed
        return False

    with pytest.raises(Killed):
        search(training([], snapshot), SPACE, Plan(file=file, trials=14, seed=0), silent)
    found, asked = searched(left)
    assert found == whole[0]
    assert len(asked) == 14 - 5


def test_more_trials_go_on_from_those_there_are(
    whole: tuple[Found, list[Setting]], tmp_path: Path
) -> None:
    file = tmp_path / "trials.journal"
    searched(file, trials=3)
    found, asked = searched(file)
    assert len(asked) == 11
    assert found == whole[0]


def test_another_seed_tries_other_settings(
    whole: tuple[Found, list[Setting]], tmp_path: Path
) -> None:
    _, asked = searched(tmp_path / "trials.journal", seed=1, trials=3)
    assert asked[0] == whole[1][0]
    assert not set(asked[1:]) & set(whole[1])


def test_a_loss_that_is_no_number_wins_nothing(tmp_path: Path) -> None:
    def run(setting: Setting, hopeless: Hopeless) -> TrialReport:
        assert hopeless(1, float("nan")) in (True, False)
        return TrialReport(
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            epochs=1,
            val_loss=float("nan"),
            val_accuracy=0.1,
        )

    with pytest.raises(OptionError, match="finite"):
        search(run, SPACE, Plan(file=tmp_path / "journal", trials=2, seed=0), silent)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "trials.journal"
    file.write_text("no journal\nat all\n")
    with pytest.raises(BundleError, match=r"trials\.journal"):
        searched(file)


def test_depths_are_within_what_is_allowed() -> None:
    assert depths(12, "head") == ("head",)
    assert depths(12, "last-1") == ("head", "last-1")
    assert depths(12, "last-6") == ("head", "last-1", "last-2", "last-4", "last-6")
    assert depths(4, "all") == ("head", "last-1", "last-2", "all")
