"""A linear head on features: the search and the fit."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import optuna
import torch

from tlexport.options import TrainOptions
from tlexport.progress import Progress
from tlexport.reports import TrialReport

Head = torch.nn.Linear
"""float32 [batch, width] -> logits: float32 [batch, classes]."""

FIRST = {"learning_rate": 3e-3, "weight_decay": 1e-2}
"""Tried before the search draws: a setting that is seldom far off on standardised features."""

PENALTIES = (1.0, 1e-2)
"""Exact solutions tried before the search draws: half the squared weights times these is added to
the mean loss."""

EXACT = 200_000_000
"""Examples x features x classes up to which all data are looked at in each step."""

ITERATIONS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """values: float32 [examples, width]; labels: int64 [examples]."""

    values: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part as tensors, features standardised."""

    values: torch.Tensor
    labels: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The best head of one trial and how it did."""

    head: torch.nn.Linear
    report: TrialReport


def search(
    train: Labelled, val: Labelled, classes: int, options: TrainOptions, progress: Progress
) -> tuple[Fit, tuple[TrialReport, ...]]:
    """Fit a head per trial; give back the one with the lowest validation loss, and all trials.

    A trial is a fit by AdamW, or, where the data are few, the exact solution under a penalty: with
    few examples and many features that generalises better.

    The head takes features as the network gives them: the standardisation it was fitted under
    (mean and deviation of the training part) is folded into its weights.
    """
    mean, std = _statistics(train.values)
    parts = [
        Part(
            values=torch.from_numpy(((part.values - mean) / std).astype(np.float32)),
            labels=torch.from_numpy(part.labels),
        )
        for part in (train, val)
    ]
    counted = weights_of(train.labels, classes, options)
    weight = torch.from_numpy(counted.astype(np.float32)) if options.class_weights else None
    few = parts[0].values.numel() * classes <= EXACT
    fits: list[Fit] = []

    def objective(trial: optuna.Trial) -> float:
        if few and trial.suggest_categorical("optimiser", ("AdamW", "L-BFGS")) == "L-BFGS":
            penalty = trial.suggest_float("penalty", 1e-4, 10.0, log=True)
            fits.append(_solve(parts[0], parts[1], _Setting(classes, 1.0, penalty, weight)))
        else:
            rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
            decay = trial.suggest_float("weight_decay", 1e-4, 1.0, log=True)
            setting = _Setting(classes, rate, decay, weight)
            fits.append(_fit(parts[0], parts[1], setting, options))
        progress("head", len(fits), options.head_trials)
        return fits[-1].report.val_loss

    optuna.logging.set_verbosity(logging.ERROR)  # Ctrl-C would be a warning with a traceback
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=options.seed))
    study.enqueue_trial({"optimiser": "AdamW", **FIRST} if few else FIRST)
    for penalty in PENALTIES if few else ():
        study.enqueue_trial({"optimiser": "L-BFGS", "penalty": penalty})
    with one_thread_each():
        study.optimize(objective, n_trials=options.head_trials)
    best = min(fits, key=lambda fit: fit.report.val_loss)
    folded = Fit(head=_folded(best.head, mean, std), report=best.report)
    return folded, tuple(fit.report for fit in fits)


def answers(train: Labelled, values: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """What the exact solution under a penalty says of other examples.

    values: float32 [examples, width] -> logits: float32 [examples, classes].
    """
    mean, std = _statistics(train.values)
    known, asked = (
        torch.from_numpy(((each - mean) / std).astype(np.float32))
        for each in (train.values, values)
    )
    part = Part(values=known, labels=torch.from_numpy(train.labels))
    found = _solve(part, part, _Setting(classes, 1.0, penalty, None)).head
    with torch.inference_mode():
        logits: np.ndarray = found(asked).numpy()
    return logits


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Matrices this small lose more to waiting than they gain from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class _Setting:
    classes: int
    learning_rate: float
    weight_decay: float
    class_weight: torch.Tensor | None


def _fit(train: Part, val: Part, setting: _Setting, options: TrainOptions) -> Fit:
    """AdamW from a zero head; stops `patience` epochs after the last better validation loss."""
    generator = torch.Generator().manual_seed(options.seed)
    head = _zero(train.values.shape[1], setting.classes)
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
    )
    loss_of = torch.nn.CrossEntropyLoss(weight=setting.class_weight)
    size = int(np.clip(len(train.labels) // 50, 16, 1024))
    best_loss, best_accuracy, best_epoch, best = float("inf"), 0.0, 0, head.state_dict()
    for epoch in range(1, options.epochs + 1):
        for rows in torch.split(torch.randperm(len(train.labels), generator=generator), size):
            optimiser.zero_grad()
            loss_of(head(train.values[rows]), train.labels[rows]).backward()
            optimiser.step()
        with torch.inference_mode():
            logits = head(val.values)
            loss = float(loss_of(logits, val.labels))
            accuracy = float((logits.argmax(1) == val.labels).double().mean())
        if loss < best_loss:
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
            best_loss, best_accuracy, best_epoch = loss, accuracy, epoch
        if epoch - best_epoch >= options.patience:
            break
    head.load_state_dict(best)
    report = TrialReport(
        optimiser="AdamW",
        learning_rate=setting.learning_rate,
        weight_decay=setting.weight_decay,
        epochs=best_epoch,
        val_loss=best_loss,
        val_accuracy=best_accuracy,
    )
    return Fit(head=head, report=report)


def _solve(train: Part, val: Part, setting: _Setting) -> Fit:
    """The minimum of the penalised loss, by L-BFGS with line search from a zero head.

    Logistic regression is convex, so there is one; `learning_rate` is the first step's.
    """
    head = _zero(train.values.shape[1], setting.classes)
    loss_of = torch.nn.CrossEntropyLoss(weight=setting.class_weight)
    optimiser = torch.optim.LBFGS(
        head.parameters(),
        lr=setting.learning_rate,
        max_iter=ITERATIONS,
        line_search_fn="strong_wolfe",
    )

    def penalised() -> torch.Tensor:
        optimiser.zero_grad()
        penalty = head.weight.square().sum() * setting.weight_decay / 2
        loss: torch.Tensor = loss_of(head(train.values), train.labels) + penalty
        cast(Any, loss).backward()
        return loss

    cast(Any, optimiser).step(penalised)
    with torch.inference_mode():
        logits = head(val.values)
        report = TrialReport(
            optimiser="L-BFGS",
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            epochs=int(optimiser.state[head.weight]["n_iter"]),
            val_loss=float(loss_of(logits, val.labels)),
            val_accuracy=float((logits.argmax(1) == val.labels).double().mean()),
        )
    return Fit(head=head, report=report)


def _zero(inputs: int, outputs: int) -> torch.nn.Linear:
    """A layer of zeros; the random state, which threads share, is left alone."""
    layer: Head = cast(Any, torch.nn.utils).skip_init(Head, inputs, outputs)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


LEAST_SPREAD = 0.1
"""Of the features' root mean square deviation: a feature that hardly varies is not blown up more.

Rectified features that seldom fire have deviations down to 1e-6. Scaled to 1 they would carry
weights in the thousands, which multiply rounding errors, and any image that makes them fire.
"""


def _statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per feature, the latter bounded from below."""
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    least = LEAST_SPREAD * np.sqrt((std**2).mean())
    return mean, np.maximum(std, least if least > 0 else 1.0)


def weights_of(labels: np.ndarray, classes: int, options: TrainOptions) -> np.ndarray:
    """What an example of each class counts: float64 [classes].

    With `class_weights` examples / (classes x examples of the class), which is 1 where all shares
    are equal; else 1.
    """
    if not options.class_weights:
        return np.ones(classes)
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (classes * np.maximum(counts, 1))


def weighed_accuracy(head: Head, asked: Labelled, weights: np.ndarray) -> float:
    """The share of right answers, each counting as its class does: weights float64 [classes]."""
    with torch.inference_mode():
        right = head(torch.from_numpy(asked.values)).argmax(1).numpy() == asked.labels
    counts = weights[asked.labels]
    return float((right * counts).sum() / counts.sum())


def _folded(head: torch.nn.Linear, mean: np.ndarray, std: np.ndarray) -> torch.nn.Linear:
    """W ((x - mean) / std) + b as one linear layer of x, folded in float64."""
    folded = _zero(head.in_features, head.out_features)
    weight = head.weight.detach().double().numpy() / std
    bias = head.bias.detach().double().numpy() - weight @ mean
    with torch.no_grad():
        folded.weight.copy_(torch.from_numpy(weight))
        folded.bias.copy_(torch.from_numpy(bias))
    return folded
