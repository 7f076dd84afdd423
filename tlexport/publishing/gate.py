"""Golden samples asked of a version through its server."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Protocol

import msgspec
import numpy as np

from tlexport.bundle import Bundle
from tlexport.inquiry.steps import NEAR
from tlexport.inquiry.truth import SHARES, asked
from tlexport.measure.compare import difference, flips, scale_of
from tlexport.options import RuntimeOptions
from tlexport.reports import GateCheck, ParityReport
from tlexport.runtimes import connect
from tlexport.spec import ModelSpec, Tensors, rows

BATCHES = (1, 2, 8)
"""Rows to a request, and the largest batch beside them."""


class Question(Protocol):
    """Something that a model answers as the original does."""

    def ask(self, where: str, model: str, version: str, name: str) -> list[GateCheck]:
        """Ask a version of a model on a server; `name` says what was asked."""


class ArrayQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Samples and the original's answers, and by what share of their scale a server may be off.

    `bundle` is None where the server's configuration shall tell the spec. `forgiven` are samples
    that `verify` saw to change their label and forgave.
    """

    bundle: Bundle | None
    labels: int
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    share: float
    largest: int
    forgiven: Set[int] = frozenset()

    def ask(self, where: str, model: str, version: str, name: str) -> list[GateCheck]:
        """Ask a version all samples in batches of several sizes.

        Raises:
            ServerError: a refusal in the server's words, or no answer in time.
            SpecError: it answers something else than rows of its outputs.
        """
        if not self.inputs:
            return []
        options = RuntimeOptions(model=model, version=version)
        runtime = connect(f"triton@{where}", self.bundle, options)
        try:
            found: list[GateCheck] = []
            count = len(next(iter(self.inputs.values())))
            for size in sizes(self.largest, count):
                parts = [
                    asked(runtime, runtime.spec, rows(self.inputs, few), len(few))
                    for few in chunks(count, size)
                ]
                answers = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
                found += _judged(runtime.spec, self, answers, (name, size))
            return found
        finally:
            runtime.close()


def of_bundle(home: Bundle, report: ParityReport, largest: int) -> ArrayQuestion:
    """All golden samples of a bundle, judged by what was allowed when it was verified."""
    golden = home.golden()
    return ArrayQuestion(
        bundle=home,
        labels=len(home.spec.labels),
        inputs=golden.inputs,
        outputs=golden.outputs,
        share=report.tolerance or SHARES.get(report.precision, SHARES["fp32"]),
        largest=largest if all(tensor.batched for tensor in home.spec.inputs) else 1,
        forgiven={flip.sample for flip in report.flips if flip.forgiven},
    )


def sizes(largest: int, count: int) -> list[int]:
    """Rows to a request, of so many, one after the other."""
    most = min(largest, count)
    return sorted({size for size in (*BATCHES, most) if size <= most})


def chunks(count: int, size: int) -> Iterator[np.ndarray]:
    """The rows of each request: int [size], the last one may be shorter."""
    return (np.arange(at, min(at + size, count)) for at in range(0, count, size))


def _judged(
    spec: ModelSpec, question: ArrayQuestion, answers: Tensors, asked_as: tuple[str, int]
) -> Iterator[GateCheck]:
    for name, want in question.outputs.items():
        got = answers[name]
        allowed = question.share * scale_of(want)
        gap = difference(want, got)
        close = gap.max_abs is not None and gap.max_abs <= allowed
        near = min(question.share, NEAR) * scale_of(want)
        shape = next(tensor.shape for tensor in spec.outputs if tensor.name == name)
        labelled = question.labels > 1 and shape == ("batch", question.labels)
        turned = [
            flip
            for flip in (flips(want, got) if labelled else ())
            if flip.row not in question.forgiven and flip.margin > near
        ]
        reason = gap.problem
        if not reason and not close:
            reason = f"{name!r} is off by {gap.max_abs:.3g} where {allowed:.3g} is allowed"
        if not reason and turned:
            reason = f"{name!r} tells another label for sample {turned[0].row}"
        yield GateCheck(
            asked=asked_as[0],
            batch=asked_as[1],
            samples=len(want),
            output=name,
            max_abs=gap.max_abs,
            allowed=allowed,
            flips=len(turned),
            passed=not reason,
            reason=reason,
        )
