"""Lightning's loop over a network whose weights are adapted."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning
import msgspec
import numpy as np
import torch

from tlexport.environment import cores
from tlexport.options import AdaptOptions
from tlexport.progress import Progress
from tlexport.reports import EpochReport
from tlexport.training import norms
from tlexport.training.better import badness
from tlexport.training.blocks import Block
from tlexport.training.checkpoint import Checkpoints
from tlexport.training.groups import Rates, groups
from tlexport.training.stream import Draws, Source, Stream
from tlexport.training.trainer import quiet, trainer

SEGMENT = 100
"""Steps between two checkpoints at most: what a killed run loses."""


class State(msgspec.Struct):
    """Where a run is: all that a checkpoint holds beside weights and the optimiser's moments.

    `best` is the epoch whose weights are kept, 0 for the frozen head's. The running sums are of the
    epoch under way and of all processes.
    """

    best: int
    best_loss: float
    best_accuracy: float
    epochs: list[EpochReport] = msgspec.field(default_factory=list)
    loss_sum: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    pruned: bool = False
    over: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A network to fit and how; `trained` are blocks of `found`, `extractor` is the network's."""

    network: torch.nn.Module
    extractor: torch.nn.Module
    found: tuple[Block, ...]
    trained: tuple[Block, ...]
    train: Source
    val: Source
    options: AdaptOptions
    rates: Rates
    augment: float
    seed: int
    patience: int
    fresh: bool
    frozen: tuple[float, float]
    """Validation loss and accuracy of the frozen head, which the run starts from."""


Hopeless = Callable[[int, float], bool]


class Adapting(lightning.LightningModule):
    """The step, the validation and the schedule of a run.

    One of Lightning's epochs is a segment of one of ours, so that checkpoints lie where its loops
    begin and end.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, told: _Told) -> None:
        super().__init__()
        self.network = run.network
        self.run_ = run
        self.told = told
        self.checkpoints = checkpoints
        loss, accuracy = run.frozen
        self.state = State(best=0, best_loss=loss, best_accuracy=accuracy)
        self.segments = -(-len(run.train.steps(run.seed, 1)) // SEGMENT)
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._steps: tuple[int, list[np.ndarray]] = (0, [])

    @property
    def place(self) -> tuple[int, int]:
        """Our epoch, from 1, and the segment within it."""
        epoch, segment = divmod(self.trainer.current_epoch, self.segments)
        return epoch + 1, segment

    def train_dataloader(self) -> Stream:
        """The segment's steps: they follow from seed and epoch, whatever was before."""
        epoch, segment = self.place
        if self._steps[0] != epoch:
            self._steps = epoch, self.run_.train.steps(self.run_.seed, epoch)
        steps = self._steps[1]
        first, end = (len(steps) * at // self.segments for at in (segment, segment + 1))
        draws = Draws(self.run_.seed, epoch, self.run_.augment)
        self._draws, self._first = draws, first
        return self.run_.train.stream(steps[first:end], draws)

    def val_dataloader(self) -> Stream:
        """Every held-out example once, as it is; each process has its part."""
        return self.run_.val.stream(self.run_.val.sorted())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with a rate for each depth; every step moves them all."""
        head = self.network.head
        assert isinstance(head, torch.nn.Module)
        made = groups(head, self.run_.extractor, self.run_.found, self.run_.rates)
        for group in made:
            group["highest"] = group["lr"]
        self._adamw = torch.optim.AdamW(made, lr=self.run_.rates.learning_rate)
        return self._adamw

    def on_train_epoch_start(self) -> None:
        """What is frozen answers as it will when served."""
        pace = norms.Pace(steps=max(1, len(self._steps[1])), fresh=self.run_.fresh)
        self._loss = 0.0
        self.network.train()
        norms.hold(self.run_.extractor, self.run_.trained, pace)
        self._began = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The step's rate and its random numbers (dropout), whenever it is run."""
        epoch, _ = self.place
        done = epoch - 1 + (self._first + batch_idx) / len(self._steps[1])
        factor = self._factor(done / self.run_.options.adapt_epochs)
        for group in self._adamw.param_groups:
            group["lr"] = group["highest"] * factor
        torch.manual_seed(self._draws.of(self._first + batch_idx, 1 + self.run_.train.rank))

    def _factor(self, share: float) -> float:
        """Linear warm-up, then a half cosine to 0 (Loshchilov and Hutter, "SGDR", 2017)."""
        warmup = self.run_.options.warmup
        if share < warmup:
            return (share + 1e-3) / (warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The share of the step's loss that this process's examples have."""
        inputs, labels, share = batch
        logits = self.network(*inputs).float()
        each = torch.nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.run_.options.label_smoothing
        )
        loss: torch.Tensor = (each * share).sum()
        self._loss += float(loss.detach())
        self.state.steps += 1
        epoch, _ = self.place
        self.told.step((epoch - 1) * len(self._steps[1]) + self._first + batch_idx + 1)
        return loss * self.run_.train.count  # processes average their gradients

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: Any = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """By norm; FSDP, whose processes hold parts of each gradient, has its own way."""
        model: Any = self.trainer.strategy.model
        clip = self.run_.options.clip
        if clip and hasattr(model, "clip_grad_norm_"):
            model.clip_grad_norm_(clip)
        elif clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), clip)

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Sums of weighted losses, weights and right answers; an empty part counts nothing."""
        inputs, labels, share = batch
        logits = self.network(*inputs).float()
        weights = torch.as_tensor(self.run_.val.weights, device=self.device)[labels]
        weights = weights * (share > 0)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        right = ((logits.argmax(1) == labels) & (share > 0)).sum()
        self._sums += torch.stack([(each * weights).sum(), weights.sum(), right.double()])

    def on_train_epoch_end(self) -> None:
        """After a segment: what was reached, the weights if they are the best, a checkpoint."""
        epoch, segment = self.place
        self.state.seconds += time.monotonic() - self._began
        mine = torch.tensor(self._loss, dtype=torch.float64, device=self.device)
        self.state.loss_sum += float(self.trainer.strategy.reduce(mine, reduce_op="sum"))
        if segment + 1 == self.segments:
            self._judge(epoch)
        self.checkpoints.save(self.trainer)

    def _judge(self, epoch: int) -> None:
        state, trainer = self.state, self.trainer
        loss, weights, right = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        trained = state.loss_sum / max(1, state.steps)
        loss, accuracy = loss / weights, right / len(self.run_.val.examples)
        if badness(loss, accuracy) < badness(state.best_loss, state.best_accuracy):
            state.best, state.best_loss, state.best_accuracy = epoch, loss, accuracy
            self.checkpoints.keep(trainer)
        rates = [group["lr"] for group in self._adamw.param_groups]
        report = EpochReport(
            epoch=epoch,
            loss=_finite(trained),
            val_loss=_finite(loss),
            val_accuracy=accuracy,
            learning_rate=max(rates),
            seconds=state.seconds,
        )
        state.epochs.append(report)
        state.loss_sum, state.steps, state.seconds = 0.0, 0, 0.0
        wild = report.loss is None or report.val_loss is None
        state.pruned = self.told.epoch(report)
        state.over = state.pruned or wild or epoch - state.best >= self.run_.patience
        trainer.should_stop = state.over

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Where the run is."""
        checkpoint["tlexport"] = msgspec.json.encode(self.state).decode()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.state = msgspec.json.decode(checkpoint["tlexport"], type=State)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class _Told:
    """Who hears of steps and epochs."""

    progress: Progress
    total: int
    hopeless: Hopeless
    note: Callable[[EpochReport], None]

    def step(self, done: int) -> None:
        """A step is through."""
        self.progress("adapt", done, self.total)

    def epoch(self, report: EpochReport) -> bool:
        """An epoch is through; whether the run shall stop as hopeless."""
        shown = "not finite" if report.loss is None else f"{report.loss:.3f}"
        said = f"epoch {report.epoch}: loss {shown}, "
        said += f"validation accuracy {report.val_accuracy:.3f}"
        self.progress(said, 1, 1)
        self.note(report)
        loss = float("inf") if report.val_loss is None else report.val_loss
        return self.hopeless(report.epoch, badness(loss, report.val_accuracy))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ears:
    """Who hears how a run goes: `hopeless` may stop it, `note` gets every epoch."""

    progress: Progress
    hopeless: Hopeless
    note: Callable[[EpochReport], None]


def fit(run: Run, checkpoints: Checkpoints, ears: Ears) -> State:
    """Fit the network in place, from a checkpoint where there is one; the best weights are kept.

    Raises:
        OptionError: the strategy is not possible here.
    """
    total = run.options.adapt_epochs * len(run.train.steps(run.seed, 1))
    told = _Told(ears.progress, total, ears.hopeless, ears.note)
    module = Adapting(run, checkpoints, told)
    held = checkpoints.state(State)
    for report in held.epochs if held is not None else ():  # whoever listens is as far as the run
        told.epoch(report)
    if held is not None and held.over:
        return held
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    listening = signal.getsignal(signal.SIGINT)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            made = trainer(run.options, module.segments)
            made.fit(module, ckpt_path=checkpoints.last if held else None, weights_only=True)
            if not made.interrupted:
                return module.state
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        torch.set_num_threads(threads)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, listening)  # Lightning goes deaf after the first Ctrl-C
    raise KeyboardInterrupt
