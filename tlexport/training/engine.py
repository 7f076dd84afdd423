"""Lightning's loop over a network whose weights are adapted."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import msgspec
import numpy as np
import torch

from tlexport.environment import cores, launch
from tlexport.errors import TlexportError
from tlexport.options import AdaptOptions
from tlexport.progress import Progress
from tlexport.reports import EpochReport, TrialReport
from tlexport.training import norms
from tlexport.training.better import badness, right
from tlexport.training.blocks import Block
from tlexport.training.checkpoint import Checkpoints
from tlexport.training.groups import Rates, groups
from tlexport.training.stream import Draws, Source, Stream
from tlexport.training.trainer import quiet, trainer

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What Lightning answers in ways of its own. Of several processes, those told by SIGTERM would wait
for each other in the middle of another exchange, and hang; under srun they would be queued anew,
with a checkpoint that is not this run's."""

GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say of it."""

SEGMENT = 100
"""Steps between two checkpoints at most: what a killed run loses."""


SUMS = 4
"""Of a validation: see `Adapting.validation_step`."""


class State(msgspec.Struct):
    """Where a run is: all that a checkpoint holds beside weights and the optimiser's moments.

    `best` is the epoch whose weights are kept, 0 for the frozen head's. The running sums are of the
    epoch under way and of all processes.
    """

    best: int
    best_loss: float
    best_accuracy: float
    best_weighed: float | None
    epochs: list[EpochReport] = msgspec.field(default_factory=list)
    loss_sum: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    pruned: bool = False
    over: bool = False

    @property
    def badness(self) -> float:
        """Of the best so far."""
        weighed = self.best_weighed
        return badness(self.best_loss, self.best_accuracy if weighed is None else weighed)


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
    frozen: TrialReport
    """What the frozen head, which the run starts from, reached."""


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
        self.state = State(
            best=0,
            best_loss=run.frozen.val_loss,
            best_accuracy=run.frozen.val_accuracy,
            best_weighed=run.frozen.val_weighed,
        )
        self.segments = -(-len(run.train.steps(run.seed, 1)) // SEGMENT)
        self._sums = torch.zeros(SUMS, dtype=torch.float64)
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

    def on_train_start(self) -> None:
        """Signals are answered as they were before Lightning came."""
        self.told.listen()

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
        self._sums = torch.zeros(SUMS, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Sums of weighted losses, weights, right answers, those weighted; an empty part: none."""
        inputs, labels, share = batch
        logits = self.network(*inputs).float()
        weights = torch.as_tensor(self.run_.val.weights, device=self.device)[labels]
        weights = weights * (share > 0)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        hits = ((logits.argmax(1) == labels) & (share > 0)).double()
        sums = ((each * weights).sum(), weights.sum(), hits.sum(), (hits * weights).sum())
        self._sums += torch.stack(sums)

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
        loss, weights, *hits = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        trained, loss = state.loss_sum / max(1, state.steps), loss / weights
        rates = [group["lr"] for group in self._adamw.param_groups]
        report = EpochReport(
            epoch=epoch,
            loss=_finite(trained),
            val_loss=_finite(loss),
            val_accuracy=hits[0] / len(self.run_.val.examples),
            learning_rate=max(rates),
            seconds=state.seconds,
            val_weighed=None if self.run_.frozen.val_weighed is None else hits[1] / weights,
        )
        if badness(loss, right(report)) < state.badness:
            state.best, state.best_loss = epoch, loss
            state.best_accuracy, state.best_weighed = report.val_accuracy, report.val_weighed
            self.checkpoints.keep(trainer)
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
    """Who hears of steps and epochs, and answers signals."""

    progress: Progress
    total: int
    hopeless: Hopeless
    note: Callable[[EpochReport], None]
    answers: Mapping[signal.Signals, Any] = dataclasses.field(
        default_factory=lambda: {number: signal.getsignal(number) for number in STOPS}
    )

    def listen(self) -> None:
        """Let signals be answered as when this was made."""
        if threading.current_thread() is threading.main_thread():
            for number, answer in self.answers.items():
                if answer is not None:
                    signal.signal(number, answer)

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
        return self.hopeless(report.epoch, badness(loss, right(report)))


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
        TlexportError: another process of the launch is gone.
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
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            made = trainer(run.options, module.segments)
            made.fit(module, ckpt_path=checkpoints.last if held else None, weights_only=True)
            if not made.interrupted:
                return module.state
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        if launch().count == 1 or not any(sign in str(error) for sign in GONE):
            raise
        raise TlexportError(
            "all processes of the launch to go on",
            got="another one is gone",
            fix="see what it said last; the same command goes on from the last checkpoint",
        ) from error
    finally:
        torch.set_num_threads(threads)
        told.listen()  # Lightning goes deaf after the first Ctrl-C
    raise KeyboardInterrupt
