"""The questions of a verification, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlexport.bundle import Golden
from tlexport.errors import TlexportError
from tlexport.inquiry.truth import Bar, Bars, Truth, asked, one_by_one
from tlexport.measure.compare import all_alike, flips, scale_of
from tlexport.measure.floor import Judged
from tlexport.options import VerifyOptions
from tlexport.progress import Progress
from tlexport.reports import LabelFlip, ShapeParity
from tlexport.runtimes import Runtime
from tlexport.spec import Probe, Tensors, rows

SIZES = (1, 2, 7)
"""Batch sizes asked besides the largest: one, the smallest real batch, an odd one."""

SERVED_LABELS = "served labels"
"""The check of what a server tells its clients."""

TOLD = {
    "golden": "the stored golden outputs are not what the reference answers (stale)",
    "answers": "not the reference's answer",
    "alone": "a row answers otherwise in a batch than alone",
    "permuted": "a permuted batch is not answered in the permuted order",
    "repeated": "the same question is answered otherwise the second time",
}


class Inquiry:
    """Everything that is asked of a candidate; `checks`, `flips` and `alone` are what was found.

    `alone` holds the candidate's answers to the golden samples, each asked alone, or None where
    it gave none.
    """

    def __init__(
        self,
        truth: Truth,
        golden: Golden,
        probes: Sequence[Probe],
        options: VerifyOptions,
        progress: Progress,
    ) -> None:
        self.checks: list[ShapeParity] = []
        self.flips: dict[tuple[str, int, int], LabelFlip] = {}
        self.samples = len(golden.samples)
        self.alone: Tensors | None = None
        self.in_batch: tuple[np.ndarray, Tensors] | None = None
        self.truth = truth
        self._spec = truth.spec
        self.golden = golden
        self._probes = probes
        self._scales = {name: scale_of(array) for name, array in golden.outputs.items()}
        batched = all(tensor.batched for tensor in self._spec.inputs)
        most = options.max_batch if batched else 1
        self._sizes = sorted({s for s in (*SIZES, most) if s <= most})
        self._progress = progress
        self._done = 0

    def run(self, candidate: Runtime) -> None:
        """Ask everything; a candidate that refuses is a failed check, not an error."""
        everyone = np.arange(self.samples)
        self._hold_reference()
        try:
            self.alone = one_by_one(candidate, self._spec, self.golden.inputs)
        except TlexportError as error:
            self.refused("answers", 1, error)
        self._tell(self.samples)
        if self.alone is not None:
            self._compare(_Question("answers", everyone, 1), self.truth.bars, self.alone)
            self._tell_apart(self.alone)
        start = 0
        picked = everyone[:1]
        for size in self._sizes:
            picked = (start + np.arange(size)) % self.samples
            start += size
            if size > 1:
                self._batch(candidate, picked)
                self._tell()
        self._largest(candidate, picked)
        for probe in self._probes:
            self._probe(candidate, probe)
            self._tell()

    def refused(self, check: str, size: int, error: TlexportError) -> None:
        """Note that the candidate gave no usable answer."""
        self.checks.append(
            ShapeParity(
                check=check,
                batch=size,
                output=", ".join(spec.name for spec in self._spec.outputs),
                max_abs=None,
                max_rel=None,
                scale=max(self._scales.values(), default=0.0),
                worst_index=(),
                passed=False,
                reason=f"no usable answer at batch {size}: expected {error.expected}, "
                f"got {error.got}",
            )
        )

    def _hold_reference(self) -> None:
        """The reference's answers, against what the bundle holds and against itself."""
        truth, inputs = self.truth, self.golden.inputs
        answers = one_by_one(truth.reference, self._spec, inputs)
        self._tell(self.samples)
        self._scales = {name: scale_of(array) for name, array in answers.items()}
        truth.hold_golden(inputs, answers)
        self._tell()
        golden = _Question("golden", np.arange(self.samples), 1)
        self._compare(golden, truth.stored_bars, self.golden.outputs)
        if not truth.independent:
            names = ", ".join(spec.name for spec in self._spec.outputs)
            self.note(
                "original",
                names,
                "the original itself answers a row otherwise in a batch than alone: put it into "
                "eval mode, and let no statistic of the batch into the answer",
            )

    def _batch(self, candidate: Runtime, picked: np.ndarray) -> None:
        """A batch against the reference's rows, and each of its rows against itself alone."""
        try:
            got = self._asked(candidate, picked)
        except TlexportError as error:
            self.refused("answers", len(picked), error)
            return
        self.in_batch = (picked, got)
        bars = {name: bar.pick(picked) for name, bar in self.truth.bars.items()}
        self._compare(_Question("answers", picked, len(picked)), bars, got)
        if self.alone is not None:
            alone = _Question("alone", picked, len(picked))
            self._compare(alone, _around(bars, rows(self.alone, picked)), got)

    def _largest(self, candidate: Runtime, picked: np.ndarray) -> None:
        """The largest batch permuted, and asked again."""
        turned = picked[::-1]
        try:
            first = self._asked(candidate, picked)
            permuted = self._asked(candidate, turned)
            again = self._asked(candidate, picked)
        except TlexportError as error:
            self.refused("repeated", len(picked), error)
            return
        finally:
            self._tell(3)
        bars = {name: bar.pick(picked) for name, bar in self.truth.bars.items()}
        if len(picked) > 1:
            back = {name: bar.pick(np.arange(len(picked))[::-1]) for name, bar in bars.items()}
            flipped = rows(first, np.s_[::-1])
            question = _Question("permuted", turned, len(picked))
            self._compare(question, _around(back, flipped), permuted)
        self._compare(_Question("repeated", picked, len(picked)), _around(bars, first), again)

    def _probe(self, candidate: Runtime, probe: Probe) -> None:
        """A question of another size against the reference's answer, and a golden row's own."""
        size = len(next(iter(probe.inputs.values())))
        want, bars = self.truth.probe(probe)
        try:
            got = asked(candidate, self._spec, probe.inputs, size)
        except TlexportError as error:
            self.refused(probe.name, size, error)
            return
        rows_of = np.array(probe.same_as or range(size))
        odd = any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in want.values())
        if odd or (probe.extreme and self.truth.precision != "fp32"):
            self._as_finite(probe, want, got)
            return
        self._compare(_Question(probe.name, rows_of, size), bars, got)
        if probe.same_as and self.alone is not None:
            around = _around(bars, rows(self.alone, rows_of))
            self._compare(_Question(f"{probe.name}, alone", rows_of, size), around, got)

    def _as_finite(self, probe: Probe, want: Tensors, got: Tensors) -> None:
        """Numbers where the original has numbers; NaN or infinity where it itself has them."""
        for name, array in want.items():
            alike = array.shape == got[name].shape and (
                array.dtype.kind != "f"
                or np.array_equal(np.isfinite(array), np.isfinite(got[name]))
            )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self.truth.notes.append(
                    f"the original itself answers {name!r} with NaN or infinity for {probe.name}"
                )
            told = "finite where the original is not, or not where it is"
            self.note(probe.name, name, "" if alike else told)

    def _asked(self, runtime: Runtime, picked: np.ndarray) -> dict[str, np.ndarray]:
        """Answers to the picked golden samples in one request."""
        return asked(runtime, self._spec, rows(self.golden.inputs, picked), len(picked))

    def _tell(self, steps: int = 1) -> None:
        batches = sum(size > 1 for size in self._sizes)
        total = 2 * self.samples + 1 + batches + 3 + len(self._probes)
        for _ in range(steps):
            self._done += 1
            self._progress("verify", self._done, total)

    def note(self, check: str, output: str, reason: str) -> None:
        """A check without numbers; it passed where there is no reason."""
        self.checks.append(
            ShapeParity(
                check=check,
                batch=1,
                output=output,
                max_abs=None,
                max_rel=None,
                scale=max(self._scales.values(), default=0.0),
                worst_index=(),
                passed=not reason,
                reason=reason,
            )
        )

    def _compare(self, asked_for: _Question, bars: Bars, got: Tensors) -> None:
        """Hold an answer against its bars, output by output."""
        picked = asked_for.picked
        for spec in self._spec.outputs:
            name, scale = spec.name, self._scales[spec.name]
            found = bars[name].judge(got[name])
            reason = "" if found.passed else _why(asked_for, name, found)
            if asked_for.check == "answers":
                unforgiven = self._flips(name, picked, bars[name], got[name])
                reason = "; ".join(filter(None, (reason, unforgiven)))
            where = found.worst_index
            share = None if found.max_abs is None else found.max_abs / (scale or 1.0)
            self.checks.append(
                ShapeParity(
                    check=asked_for.check,
                    batch=asked_for.size,
                    output=name,
                    max_abs=found.max_abs,
                    max_rel=share,
                    scale=scale,
                    worst_index=(int(picked[where[0]]), *where[1:]) if where else (),
                    passed=not reason,
                    reason=reason,
                    error=found.error,
                    own=found.own,
                    ratio=found.ratio
                    if found.ratio is not None and np.isfinite(found.ratio)
                    else None,
                )
            )

    def _flips(self, name: str, picked: np.ndarray, bar: Bar, got: np.ndarray) -> str:
        """Note the rows that change their label; the unforgiven ones as a reason.

        A flip is forgiven where the reference's margin is below what one element may be off. Were
        the bound twice that, it would forgive whatever the elementwise bar lets pass (elements off
        by at most e move a margin by at most 2e) and the labels would never decide anything.
        """
        labels, want = self._spec.labels, self.truth.answers[name][picked]
        if not labels or want.ndim != 2 or want.shape[1] != len(labels):
            return ""
        unforgiven = []
        for flip in flips(want, got):
            sample = int(picked[flip.row])
            seen = LabelFlip(
                sample=sample,
                output=name,
                reference=labels[flip.reference],
                candidate=labels[flip.candidate],
                margin=flip.margin,
                forgiven=flip.margin < bar.room(flip.row),
            )
            self.flips.setdefault((name, sample, flip.candidate), seen)
            if not seen.forgiven:
                unforgiven.append(
                    f"golden sample {sample} becomes {seen.candidate!r} in place of "
                    f"{seen.reference!r} (margin {seen.margin:.3g})"
                )
        return "; ".join(unforgiven[:3]) + (" ..." if len(unforgiven) > 3 else "")

    def _tell_apart(self, alone: Tensors) -> None:
        """Where the reference tells samples apart, the candidate must."""
        for spec in self._spec.outputs:
            if all_alike(self.truth.answers[spec.name]):
                continue
            constant = all_alike(alone[spec.name])
            told = f"{spec.name!r} is the same for all {self.samples} golden samples"
            self.note("distinct", spec.name, told if constant else "")


@dataclass(frozen=True)
class _Question:
    """What was asked: a check's name, the golden samples in it, and how many at a time."""

    check: str
    picked: np.ndarray
    size: int


def _around(bars: Bars, answers: Tensors) -> Bars:
    """The same room around other answers: those of the candidate itself."""
    return {name: bar.between(answers[name]) for name, bar in bars.items()}


def _why(asked_for: _Question, name: str, found: Judged) -> str:
    """Which sample, where and by how much, in one sentence."""
    told = TOLD.get(asked_for.check, f"not the same answer for {asked_for.check}")
    where = ""
    if found.worst_index:
        row, *element = found.worst_index
        where = f"{element} for golden sample {asked_for.picked[row]}"
        where += f" at batch {asked_for.size}" if asked_for.size > 1 else ""
    if found.problem:
        return f"{told}: {name}{where}: {found.problem}"
    if found.ratio is None:
        return f"{told}: {name}{where}: {found.max_abs:.3g} off where {found.allowed} is allowed"
    beyond = f"{found.ratio:.3g}x the rounding of the original itself"
    beyond = beyond if np.isfinite(found.ratio) else "where the original rounds nothing at all"
    return f"{told}: {name}{where}: {found.max_abs:.3g} off, {beyond} ({found.allowed} is allowed)"
