"""How a stage tells how far it is, without printing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much is done, and of how much (None: not known)."""

    def __call__(self, what: str, done: int, total: int | None = None) -> None:
        """Take note."""


def silent(what: str, done: int, total: int | None = None) -> None:
    """Tell nobody."""
