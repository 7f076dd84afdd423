"""What a killed run goes on from."""

from __future__ import annotations

import contextlib
import fcntl
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch

from tlexport.environment import launch
from tlexport.errors import BundleError
from tlexport.files import cannot_write, sync_file, write_atomic

if TYPE_CHECKING:
    import lightning

State = TypeVar("State", bound=msgspec.Struct)

LAST, BEST = "last.ckpt", "best.pt"


class Checkpoints:
    """The folder of one run: its last checkpoint, and the best weights so far.

    The best weights are written before the checkpoint that tells of them. A run that is killed in
    between comes to them again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / LAST

    def state(self, kind: type[State]) -> State | None:
        """Where the last checkpoint says the run is.

        None where there is none, or one that a disk has damaged: the run begins anew.
        """
        if not self.last.is_file():
            return None
        try:
            held = torch.load(self.last, map_location="cpu", weights_only=True)
            return msgspec.json.decode(held["tlexport"], type=kind)
        except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, msgspec.DecodeError):
            return None

    def save(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint, whole or not at all; every process has to call it."""
        part = self.folder / f".{LAST}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                sync_file(part)
                part.replace(self.last)
        except OSError as error:
            raise cannot_write(self.last, error) from error
        trainer.strategy.barrier()

    def keep(self, trainer: lightning.Trainer) -> None:
        """Write the weights as the best so far; every process has to call it."""
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            content = io.BytesIO()
            prefix = "network."
            torch.save({name.removeprefix(prefix): each for name, each in weights.items()}, content)
            write_atomic(self.folder / BEST, content.getvalue())
        trainer.strategy.barrier()

    def best(self) -> dict[str, Any] | None:
        """The weights of the best epoch; None where the frozen head was not beaten."""
        path = self.folder / BEST
        if not path.is_file():
            return None
        weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return weights


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against a second run of the same command; processes of one launch share it.

    Raises:
        BundleError: another run holds it, or it cannot be written.
    """
    if launch().rank:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BundleError(
                "one run of this command at a time",
                got="another one is adapting the same network to the same data",
                fix="wait for it, or pass another --seed",
            ) from error
        yield


def is_begun(folder: Path) -> bool:
    """Whether an earlier run left something to go on from."""
    return any(folder.glob(f"*/{LAST}"))
