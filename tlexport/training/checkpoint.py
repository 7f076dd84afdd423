"""What a killed run goes on from."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch

from tlexport.environment import launch
from tlexport.errors import BundleError
from tlexport.files import cannot_write, write_atomic

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

    def last(self) -> Path | None:
        """The checkpoint to go on from; None where there is none, or one that cannot be read."""
        path = self.folder / LAST
        if not path.is_file():
            return None
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # damaged by a disk: the run begins anew
            return None
        return path

    def state(self, kind: type[State]) -> State:
        """Where the last checkpoint says the run is."""
        held = torch.load(self.folder / LAST, map_location="cpu", weights_only=True)
        return msgspec.json.decode(held["tlexport"], type=kind)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint, whole or not at all; every process has to call it."""
        part = self.folder / f".{LAST}"
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            _move(part, self.folder / LAST)
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


def _move(part: Path, path: Path) -> None:
    try:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


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
