"""Lightning's trainer: devices, processes, precision."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from tlexport.environment import launch, multiplies_bf16
from tlexport.errors import OptionError
from tlexport.options import AdaptOptions


def trainer(options: AdaptOptions, segments: int) -> lightning.Trainer:
    """On the processes of this launch; `segments` of its epochs are one of ours."""
    mine = launch()
    return lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=mine.local_count,
        num_nodes=max(1, mine.count // mine.local_count),
        strategy=strategy(options.strategy),
        precision="bf16-mixed" if in_bf16(options.adapt_precision) else "32-true",
        max_epochs=options.adapt_epochs * segments,
        check_val_every_n_epoch=segments,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


def strategy(name: str) -> Any:
    """How the processes of this launch share the network.

    Raises:
        OptionError: FSDP is asked for without a GPU.
    """
    from lightning.pytorch.strategies import DDPStrategy

    gpu = torch.cuda.is_available()
    if name == "fsdp":
        if not gpu:
            raise OptionError(
                "GPUs for --strategy fsdp",
                got="none on this machine",
                fix="pass --strategy ddp, which runs on CPUs as well",
            )
        return "fsdp"
    if launch().count == 1 and name == "auto":
        return "auto"
    return DDPStrategy(process_group_backend="nccl" if gpu else "gloo")


def in_bf16(precision: str) -> bool:
    """Whether steps compute in bfloat16."""
    if precision == "auto":
        return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else multiplies_bf16()
    return precision == "bf16"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what Lightning says of its own set-up."""
    spoken = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in spoken]
    for logger in spoken:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for about in ("GPU available", "Found .* in eval mode", "LeafSpec", "treespec"):
            warnings.filterwarnings("ignore", message=f".*{about}")
        try:
            yield
        finally:
            for logger, level in zip(spoken, levels, strict=True):
                logger.setLevel(level)
