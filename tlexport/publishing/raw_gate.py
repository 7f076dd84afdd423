"""Golden files asked of a pipeline through its server."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import msgspec

from tlexport.inquiry.steps import Held, Told, held, raw_answers
from tlexport.options import RuntimeOptions
from tlexport.publishing.gate import chunks, sizes
from tlexport.reports import GateCheck
from tlexport.runtimes import connect
from tlexport.serving import pipeline

MISSING = float("inf")
"""How far off it is to give no number."""


class RawQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Golden files and the original's answers, and what share of their scale scores may be off.

    `forgiven` are files that `verify` saw to change their label and forgave.
    """

    files: tuple[Path, ...]
    golden: pipeline.Golden
    share: float
    largest: int
    forgiven: Set[int] = frozenset()

    def ask(self, where: str, model: str, version: str, name: str) -> list[GateCheck]:
        """Ask a version of a pipeline all files in batches of several sizes.

        Raises:
            ServerError: a refusal in the server's words, or no answer in time.
        """
        items = [file.read_bytes() for file in self.files]
        options = RuntimeOptions(model=model, version=version)
        runtime = connect(f"triton@{where}", None, options)
        try:
            found = []
            for size in sizes(self.largest, len(items)):
                told: list[Told] = []
                for few in chunks(len(items), size):
                    told += raw_answers(runtime, [items[row] for row in few])
                found.append(self._judged(told, (f"{name}, raw files", size)))
            return found
        finally:
            runtime.close()

    def _judged(self, told: Sequence[Told], asked_as: tuple[str, int]) -> GateCheck:
        found = [held(self.golden, row, each, self.share) for row, each in enumerate(told)]
        worst = max(found, key=lambda each: each.off / each.allowed if each.off >= 0 else MISSING)
        turned = [row for row, each in enumerate(found) if self._is_turned(row, each)]
        off = [row for row, each in enumerate(found) if not each.off <= each.allowed]
        reason = ""
        for row in (*off[:1], *turned[:1])[:1]:
            got, want = told[row], self.golden
            reason = f"{self.files[row].name}: {want.labels[row][0]!r} at "
            reason += f"{want.probabilities[row][0]:.4g} is told as "
            reason += got.error or f"{got.labels[0]!r} at {got.probabilities[0]:.4g}"
        return GateCheck(
            asked=asked_as[0],
            batch=asked_as[1],
            samples=len(told),
            output=pipeline.PROBABILITY,
            max_abs=worst.off if worst.off >= 0 else None,
            allowed=worst.allowed,
            flips=len(turned),
            passed=not reason,
            reason=reason,
        )

    def _is_turned(self, row: int, found: Held) -> bool:
        return not found.same and row not in self.forgiven
