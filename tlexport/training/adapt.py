"""A network's own weights fitted, from the frozen head on."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import torch

from tlexport.environment import launch
from tlexport.errors import OptionError
from tlexport.files import sha256_of_json
from tlexport.options import TrainOptions
from tlexport.progress import Progress
from tlexport.reports import AdaptReport, EpochReport, TrialReport
from tlexport.tasks import Example, Learner
from tlexport.training import engine, lora, norms, trackers, trainer, trials
from tlexport.training.blocks import Block, blocks, choose
from tlexport.training.checkpoint import Checkpoints
from tlexport.training.features import digest_of_state
from tlexport.training.groups import Rates
from tlexport.training.stream import Source
from tlexport.training.trials import Setting

VERSION = 2
"""Raise it when the same data and options would end with other weights than before."""

GENTLE, BOLD = 1e-4, 1e-3
"""Highest rates where none is asked for: of trained weights, and of what starts from nothing."""

UNTOLD = {"logs", "devices", "nodes", "strategy", "adapt_precision"}
"""Options whose outcome trackers are told in other words, or not at all."""

PROBE = 2
"""Examples of the forward pass that tells the order of blocks and what has gradients."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A frozen head and what it was fitted on; `class_weights` float64 [classes]."""

    task: ModuleType
    learner: Learner
    head: torch.nn.Linear
    frozen: TrialReport
    train: Sequence[Example]
    val: Sequence[Example]
    class_weights: np.ndarray
    options: TrainOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desk:
    """Where a run is kept, to go on from when it was killed, and who hears how it goes.

    `name` is what trackers call it; `note` gets the epochs so far of the trial under way.
    """

    folder: Path
    name: str
    progress: Progress
    note: Callable[[Sequence[EpochReport]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """The head and how it came about; the learner's extractor has its new weights."""

    head: torch.nn.Linear
    report: AdaptReport
    best: TrialReport
    trials: tuple[TrialReport, ...]


def key_of(work: Work) -> str:
    """What tells a run apart: data, network, options, and how many processes share a batch."""
    options = msgspec.to_builtins(work.options)
    for name in ("name", "golden", "force", "skip_broken", "data"):
        options.pop(name)
    return sha256_of_json(
        {
            "version": VERSION,
            "train": [(example.digest, example.label) for example in work.train],
            "val": [(example.digest, example.label) for example in work.val],
            "weights": digest_of_state(work.learner.extractor),
            "head": digest_of_state(work.head),
            "network": work.learner.network,
            "preprocess": work.learner.preprocess,
            "files": {n: hashlib.sha256(c).hexdigest() for n, c in work.learner.files.items()},
            "options": options,
            "processes": launch().count,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "bf16": trainer.in_bf16(work.options.adapt.adapt_precision),
        }
    )[:24]


def hold(options: TrainOptions) -> None:
    """Refuse what cannot be done here, before anything is computed.

    Raises:
        OptionError: the strategy needs what is not here, or the launcher started other processes.
        MissingDependency: peft or a logger is asked for and not installed.
        ServerError: MLflow's store does not answer.
    """
    wanted, mine = options.adapt, launch()
    trainer.strategy(wanted.strategy)
    if wanted.lora:
        lora.hold()
    asked = (wanted.devices or mine.local_count) * wanted.nodes
    if (wanted.devices or wanted.nodes > 1) and asked != mine.count:
        raise OptionError(
            f"{asked} processes for --devices {wanted.devices} --nodes {wanted.nodes}",
            got=f"{mine.count}",
            fix="start it with torchrun --nnodes NODES --nproc-per-node DEVICES -m tlexport train "
            "..., or by srun",
        )
    trackers.hold(wanted.logs)


def adapt(work: Work, desk: Desk) -> Adapted:
    """Fit the learner's extractor, in place, and a head, from the frozen head's weights on.

    The result is right no less often on the validation part than the frozen head: that is what it
    started from, and what it falls back to.

    Raises:
        OptionError: the backbone has fewer blocks, or nothing that adapters could be put on.
    """
    trial = _Trial(work, desk)
    options = work.options
    first = Setting(
        learning_rate=options.adapt.learning_rate or trial.rate,
        weight_decay=options.adapt.weight_decay,
        unfreeze=options.adapt.unfreeze,
        augment=options.adapt.augment,
    )
    if options.adapt_trials == 1:
        best, report = first, trial.run(first, lambda epoch, loss: False)
        tried: tuple[TrialReport, ...] = (report,)
    else:
        unfreeze = options.adapt.unfreeze
        space = trials.Space(
            first=first,
            unfreeze=(unfreeze,)
            if options.adapt.lora
            else trials.depths(len(trial.found), unfreeze),
            augment=options.adapt.augment,
        )
        plan = trials.Plan(
            file=_journal(desk.folder), trials=options.adapt_trials, seed=options.seed
        )
        found = trials.search(trial.run, space, plan, desk.progress)
        best, report, tried = found.best, found.report, found.trials
    head, told = trial.taken(best)
    return Adapted(head=head, report=told, best=report, trials=tried)


def _journal(folder: Path) -> Path:
    """The file of this process's search.

    Every process of a launch searches for itself and comes to the same settings, since these follow
    from what earlier trials came to and no trial ends before all have done their part of it. So all
    but the first begin with a copy of what the first one's file holds.
    """
    file, rank = folder / "trials.journal", launch().rank
    if not rank:
        return file
    copy = folder / f"trials-{rank}.journal"
    copy.unlink(missing_ok=True)
    if file.is_file():
        shutil.copyfile(file, copy)
    return copy


class _Trial:
    """Ways to adapt one network, each from the same weights."""

    def __init__(self, work: Work, desk: Desk) -> None:
        self._work = work
        self._desk = desk
        self._extractor = work.learner.extractor.cpu()
        self._fresh = work.options.weights == "random"
        arrays = work.task.load(
            [example.source for example in work.train[:PROBE]],
            work.learner.preprocess,
            work.learner.files,
        ).inputs
        if work.options.adapt.augment:  # refused here where the task has none
            sample = {name: torch.from_numpy(array) for name, array in arrays.items()}
            work.task.augment(sample, work.options.adapt.augment, torch.Generator())
        self._probe = tuple(torch.from_numpy(array) for array in arrays.values())
        self.found = blocks(self._extractor, self._probe)
        choose(self.found, work.options.adapt.unfreeze)
        self._start = {
            name: each.detach().clone() for name, each in self._network().state_dict().items()
        }
        bf16 = trainer.in_bf16(work.options.adapt.adapt_precision)
        self._precision = "bf16" if bf16 else "fp32"
        self.rate = BOLD if self._fresh or work.options.adapt.lora else GENTLE

    def run(self, setting: Setting, hopeless: trials.Hopeless) -> TrialReport:
        """Fit it that way, from a checkpoint where there is one."""
        work, options = self._work, self._work.options
        network, trained = self._prepared(setting)
        checkpoints = Checkpoints(self._folder(setting))
        mine = launch()
        train, val = (
            Source(
                task=work.task,
                learner=work.learner,
                examples=examples,
                most=options.adapt.adapt_batch,
                weights=work.class_weights,
                rank=mine.rank,
                count=mine.count,
            )
            for examples in (work.train, work.val)
        )
        run = engine.Run(
            network=network,
            extractor=self._extractor,
            found=self.found,
            trained=trained,
            train=train,
            val=val,
            options=options.adapt,
            rates=Rates(
                learning_rate=setting.learning_rate,
                weight_decay=setting.weight_decay,
                decay=options.adapt.layer_decay,
            ),
            augment=setting.augment,
            seed=options.seed,
            patience=options.patience,
            fresh=self._fresh,
            frozen=work.frozen,
        )
        so_far: list[EpochReport] = []

        with trackers.opened(options.adapt.logs, self._told(setting)) as tell:

            def note(report: EpochReport) -> None:
                so_far.append(report)
                self._desk.note(so_far)
                tell(report)

            ears = engine.Ears(progress=self._desk.progress, hopeless=hopeless, note=note)
            state = engine.fit(run, checkpoints, ears)
        if options.adapt.lora:
            lora.merge(self._extractor)
        return TrialReport(
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            epochs=state.best,
            val_loss=state.best_loss,
            val_accuracy=state.best_accuracy,
            val_weighed=state.best_weighed,
            unfreeze=setting.unfreeze,
            augment=setting.augment,
            pruned=state.pruned,
        )

    def _told(self, setting: Setting) -> trackers.Trial:
        """A way as those who watch elsewhere read it."""
        options = self._work.options
        adapt = msgspec.to_builtins(options.adapt) | msgspec.to_builtins(setting)
        return trackers.Trial(
            name=self._desk.name,
            folder=self._folder(setting),
            asked={
                "task": options.task,
                "backbone": options.backbone,
                "weights": self._work.learner.source,
                "seed": options.seed,
                "class_weights": options.class_weights,
                "train_examples": len(self._work.train),
                "val_examples": len(self._work.val),
                "precision": self._precision,
                "processes": launch().count,
                **{name: value for name, value in adapt.items() if name not in UNTOLD},
            },
        )

    def taken(self, setting: Setting) -> tuple[torch.nn.Linear, AdaptReport]:
        """The network as that way left it at its best, in evaluation mode and without wrappers."""
        options = self._work.options
        network, trained = self._prepared(setting)
        counted = [each for each in network.parameters() if each.requires_grad]
        checkpoints = Checkpoints(self._folder(setting))
        weights = checkpoints.best()
        if weights is None:
            network.head.load_state_dict(self._work.head.state_dict())
        else:
            network.load_state_dict(weights)
        adapters = options.adapt.lora
        if adapters:
            lora.merge(self._extractor)
        network.requires_grad_(False).eval()
        state = checkpoints.state(engine.State)
        assert state is not None, "the run has ended"
        return network.head, AdaptReport(
            unfreeze=f"adapters of rank {adapters}" if adapters else setting.unfreeze,
            blocks=tuple(block.name for block in trained),
            of_blocks=len(self.found),
            trained_parameters=sum(each.numel() for each in counted),
            parameters=sum(each.numel() for each in network.parameters()),
            batch=options.adapt.adapt_batch,
            precision=self._precision,
            processes=launch().count,
            best_epoch=state.best,
            epochs=tuple(state.epochs),
            frozen_val_loss=self._work.frozen.val_loss,
            frozen_val_accuracy=self._work.frozen.val_accuracy,
        )

    def _network(self) -> _Whole:
        head = torch.nn.Linear(self._work.head.in_features, self._work.head.out_features)
        head.load_state_dict(self._work.head.state_dict())
        return _Whole(self._extractor, head)

    def _prepared(self, setting: Setting) -> tuple[_Whole, tuple[Block, ...]]:
        """The network with the weights that it came with, and what shall train able to."""
        self._extractor.cpu()
        with torch.random.fork_rng(devices=[]):
            network = self._network()
        network.load_state_dict(self._start)
        trained = choose(self.found, setting.unfreeze)
        if self._work.options.adapt.lora:
            lora.wrap(
                self._extractor,
                self._probe,
                rank=self._work.options.adapt.lora,
                seed=self._work.options.seed,
            )
        else:
            norms.freeze(self._extractor, trained)
        _freeze_unreached(network, self._probe)
        if self._fresh and self._work.options.adapt.unfreeze != "head":
            # A head fitted on random features is none to start from: they will change at once.
            torch.nn.init.zeros_(network.head.weight)
            torch.nn.init.zeros_(network.head.bias)
        if all(each.ndim < 5 for each in network.parameters()):  # 3-D kernels cannot be
            network = network.to(memory_format=torch.channels_last)
        return network, trained

    def _folder(self, setting: Setting) -> Path:
        return self._desk.folder / sha256_of_json(msgspec.to_builtins(setting))[:12]


class _Whole(torch.nn.Module):
    """What the extractor takes -> float32 logits [batch, classes], while it is fitted."""

    head: torch.nn.Linear

    def __init__(self, extractor: torch.nn.Module, head: torch.nn.Linear) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The model's inputs in order."""
        logits: torch.Tensor = self.head(self.extractor(*inputs))
        return logits


def _freeze_unreached(network: torch.nn.Module, probe: Sequence[torch.Tensor]) -> None:
    """Freeze weights that the answer does not depend on (a pooler behind the last layer).

    Processes that average their gradients would wait for one that never comes.
    """
    network.eval()
    with torch.enable_grad():
        network(*probe).sum().backward()
    for each in network.parameters():
        if each.requires_grad and each.grad is None:
            each.requires_grad_(False)
        each.grad = None
