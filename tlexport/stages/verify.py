"""Whether one runtime answers as another does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle, Golden
from tlexport.environment import environment
from tlexport.errors import BundleError, SpecError, TlexportError
from tlexport.measure.compare import Difference, all_alike, difference, flips, scale_of
from tlexport.options import RuntimeOptions, VerifyOptions
from tlexport.progress import Progress, silent
from tlexport.reports import LabelFlip, ParityReport, ShapeParity
from tlexport.runtimes import Runtime, connect, reference_of
from tlexport.spec import ModelSpec, Probe, Tensors, rows

logger = logging.getLogger(__name__)

SIZES = (1, 2, 7)
"""Batch sizes asked besides the largest: one, the smallest real batch, an odd one."""


def verify(
    bundle: Bundle | Path | str,
    options: VerifyOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> ParityReport:
    """Ask both runtimes the golden samples and judge what the candidate answers.

    The candidate must answer as the reference does, each sample alone and in batches of 2, 7 and
    `max_batch`; a row in a batch as alone; a permuted batch permuted; twice the same; the probes
    of the task (other lengths, padding on either side); and the reference must still answer what
    the bundle's golden outputs hold. Every difference may be
    `tolerance` x the largest |value| the reference gives in that output; NaN and infinity fail.

    Where the reference is the bundle's original and the candidate ran the artifact's file, the
    report is kept as `parity-<artifact>`, which `package` asks for; otherwise (a server, stored
    answers in place of an original) as `parity-<artifact>-<candidate>`. A bundle made of an ONNX
    file has no original in PyTorch: the answers that came with its samples are taken for it, or
    the imported file itself, unoptimised.

    Returns:
        The report, whether or not it passed.

    Raises:
        BundleError: weights, golden samples or artifact are missing, changed or stale.
        TlexportError: a runtime cannot be opened, or the reference does not answer.
    """
    options, runtime = options or VerifyOptions(), runtime or RuntimeOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    artifact, golden = home.artifact(runtime.artifact), home.golden()
    name = options.reference or reference_of(home)
    options = msgspec.structs.replace(options, reference=name)
    logger.debug("weights are whole: %s", home.weights)
    with contextlib.ExitStack() as stack:
        reference = connect(name, home, runtime)
        stack.callback(reference.close)
        stored = name.startswith("golden@")  # answers nothing else, and needs no torch
        task = None if stored else plugins.load("tasks", home.spec.task)
        probes = task.probes(home.spec, golden.inputs, options.max_batch) if task else []
        inquiry = _Inquiry(home.spec, golden, probes, options, progress)
        kind = f"parity-{artifact.name}-{options.candidate.partition('@')[0]}"
        try:
            candidate = connect(options.candidate, home, runtime)
        except SpecError as error:
            inquiry.refused("answers", 1, error)
        else:
            stack.callback(candidate.close)
            if _is_proof(home, artifact, reference, candidate):
                kind = f"parity-{artifact.name}"
            inquiry.run(reference, candidate)
    if home.artifact(runtime.artifact).sha256 != artifact.sha256:
        raise BundleError(
            f"{artifact.name} as it was when the verification began",
            got="another file in its place",
            fix="run the same command again",
        )
    report = _report(home, artifact, options, inquiry)
    home.write_report(kind, report)
    return report


def _is_proof(home: Bundle, artifact: Artifact, reference: Runtime, candidate: Runtime) -> bool:
    """True where the original itself was compared with this very file, opened by this process."""
    facts, manifest = reference.facts(), home.manifest
    original = facts.get("weights_sha256") == manifest.weights_sha256
    if not manifest.original and manifest.answered_by == "samples":
        original |= facts.get("golden_sha256") == manifest.golden_sha256
    return original and candidate.facts().get("opened_sha256") == artifact.sha256


def _report(
    home: Bundle, artifact: Artifact, options: VerifyOptions, inquiry: _Inquiry
) -> ParityReport:
    answers = [check for check in inquiry.checks if check.check == "answers"]
    found = tuple(inquiry.flips.values())
    return ParityReport(
        reference=str(options.reference),
        candidate=options.candidate,
        artifact=artifact.name,
        artifact_sha256=artifact.sha256,
        weights_sha256=home.manifest.weights_sha256,
        tolerance=options.tolerance,
        samples=inquiry.samples,
        checks=tuple(inquiry.checks),
        flips=found,
        max_abs=max((c.max_abs for c in answers if c.max_abs is not None), default=0.0),
        max_rel=max((c.max_rel for c in answers if c.max_rel is not None), default=0.0),
        passed=all(c.passed for c in inquiry.checks) and all(f.forgiven for f in found),
        environment=environment(),
    )


class _Inquiry:
    """The questions, and what was found so far: `checks` and `flips`."""

    def __init__(
        self,
        spec: ModelSpec,
        golden: Golden,
        probes: Sequence[Probe],
        options: VerifyOptions,
        progress: Progress,
    ) -> None:
        self.checks: list[ShapeParity] = []
        self.flips: dict[tuple[str, int, int], LabelFlip] = {}
        self.samples = len(golden.samples)
        self._spec = spec
        self._golden = golden
        self._probes = probes
        self._tolerance = options.tolerance
        self._scales = {name: scale_of(array) for name, array in golden.outputs.items()}
        batched = all(tensor.batched for tensor in spec.inputs)
        most = options.max_batch if batched else 1
        self._sizes = sorted({s for s in (*SIZES, most) if s <= most})
        self._progress = progress
        self._done = 0

    def run(self, reference: Runtime, candidate: Runtime) -> None:
        """Ask everything; a candidate that refuses is a failed check, not an error."""
        everyone = np.arange(self.samples)
        truth = self._one_by_one(reference)
        self._scales = {name: scale_of(array) for name, array in truth.items()}
        self._compare("golden", 1, everyone, (truth, self._golden.outputs))
        alone = None
        try:
            alone = self._one_by_one(candidate)
        except TlexportError as error:
            self.refused("answers", 1, error)
        if alone is not None:
            self._compare("answers", 1, everyone, (truth, alone))
            self._tell_apart(truth, alone)
        start = 0
        for size in self._sizes:
            picked = (start + np.arange(size)) % self.samples
            start += size
            if size > 1:
                self._batch(reference, candidate, picked, alone)
        self._largest(candidate, picked)
        for probe in self._probes:
            self._probe(reference, candidate, probe, alone)

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

    def _batch(
        self, reference: Runtime, candidate: Runtime, picked: np.ndarray, alone: Tensors | None
    ) -> None:
        """A batch against the reference's, and each of its rows against itself alone."""
        want = self._asked(reference, picked)
        try:
            got = self._asked(candidate, picked)
        except TlexportError as error:
            self.refused("answers", len(picked), error)
            return
        self._compare("answers", len(picked), picked, (want, got))
        if alone is not None:
            self._compare("alone", len(picked), picked, (rows(alone, picked), got))

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
        flipped = rows(first, np.s_[::-1])
        if len(picked) > 1:
            self._compare("permuted", len(picked), turned, (flipped, permuted))
        self._compare("repeated", len(picked), picked, (first, again))

    def _probe(
        self, reference: Runtime, candidate: Runtime, probe: Probe, alone: Tensors | None
    ) -> None:
        """A task's own question against the reference's answer, and a golden row's own."""
        size = len(next(iter(probe.inputs.values())))
        want = self._answer(reference, probe.inputs, size)
        try:
            got = self._answer(candidate, probe.inputs, size)
        except TlexportError as error:
            self.refused(probe.name, size, error)
            return
        asked = np.array(probe.same_as or range(size))
        self._compare(probe.name, size, asked, (want, got))
        if probe.same_as and alone is not None:
            self._compare(f"{probe.name}, alone", size, asked, (rows(alone, asked), got))

    def _one_by_one(self, runtime: Runtime) -> dict[str, np.ndarray]:
        """Answers to all golden samples, each asked alone."""
        answers = [self._asked(runtime, np.array([i])) for i in range(self.samples)]
        for sample, answer in enumerate(answers):
            for name, array in answer.items():
                first = answers[0][name]
                if array.shape != first.shape or array.dtype != first.dtype:
                    raise SpecError(
                        f"one shape and dtype of {name!r} for all samples",
                        got=f"{array.dtype} {list(array.shape)} for sample {sample}, "
                        f"{first.dtype} {list(first.shape)} for sample 0",
                        fix="the answer's shape must depend on the inputs' shapes alone",
                    )
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}

    def _asked(self, runtime: Runtime, picked: np.ndarray) -> dict[str, np.ndarray]:
        """Answers to the picked golden samples in one request: all outputs, a row for each."""
        return self._answer(runtime, rows(self._golden.inputs, picked), len(picked))

    def _answer(self, runtime: Runtime, inputs: Tensors, size: int) -> dict[str, np.ndarray]:
        """Answers to one request: all outputs, a row for each of its rows."""
        try:
            answer = runtime(inputs)
        except TlexportError:
            raise
        except Exception as error:  # a runtime of somebody's own may raise anything
            raise SpecError(
                f"an answer from {runtime.name}",
                got=f"{type(error).__name__}: {error}",
                fix="have the runtime translate it: its author knows what to do about it",
            ) from error
        self._done += 1
        batches = sum(size > 1 for size in self._sizes)
        total = 2 * (self.samples + batches + len(self._probes)) + 3
        self._progress("verify", self._done, total)
        declared = sorted(spec.name for spec in self._spec.outputs)
        if sorted(answer) != declared:
            raise SpecError(
                f"the outputs {declared} from {runtime.name}",
                got=str(sorted(answer)),
                fix="export or serve the model of this bundle",
            )
        for name, array in answer.items():
            if not array.ndim or len(array) != size:
                raise SpecError(
                    f"{name!r} with {size} rows from {runtime.name}",
                    got=f"shape {list(array.shape)}",
                    fix="export with a dynamic batch axis that every output carries",
                )
        return dict(answer)

    def _compare(
        self, check: str, size: int, picked: np.ndarray, pair: tuple[Tensors, Tensors]
    ) -> None:
        """Hold the second of a pair of answers against the first, output by output."""
        want, got = pair
        for spec in self._spec.outputs:
            name, scale = spec.name, self._scales[spec.name]
            found = difference(want[name], got[name])
            passed = found.within(self._tolerance, scale)
            reason = "" if passed else self._why(check, name, (picked, size), found)
            if check == "answers":
                unforgiven = self._flips(name, picked, want[name], got[name])
                reason = "; ".join(filter(None, (reason, unforgiven)))
            where = found.worst_index
            self.checks.append(
                ShapeParity(
                    check=check,
                    batch=size,
                    output=name,
                    max_abs=found.max_abs,
                    max_rel=found.share(scale),
                    scale=scale,
                    worst_index=(int(picked[where[0]]), *where[1:]) if where else (),
                    passed=not reason,
                    reason=reason,
                )
            )

    def _why(self, check: str, name: str, asked: tuple[np.ndarray, int], found: Difference) -> str:
        """Which sample, where and by how much, in one sentence; `asked`: samples, batch size."""
        picked, size = asked
        told = {
            "golden": "the stored golden outputs are not what the reference answers (stale)",
            "answers": "not the reference's answer",
            "alone": "a row answers otherwise in a batch than alone",
            "permuted": "a permuted batch is not answered in the permuted order",
            "repeated": "the same question is answered otherwise the second time",
        }.get(check, f"not the same answer for {check}")
        where = ""
        if found.worst_index:
            row, *element = found.worst_index
            where = f"{element} for golden sample {picked[row]}"
            where += f" at batch {size}" if size > 1 else ""
        allowed = self._tolerance * self._scales[name]
        gap = found.problem or f"{found.max_abs:.3g} off where {allowed:.3g} is allowed"
        return f"{told}: {name}{where}: {gap}"

    def _flips(self, name: str, picked: np.ndarray, want: np.ndarray, got: np.ndarray) -> str:
        """Note the rows that change their label; the unforgiven ones as a reason.

        A flip is forgiven where the reference's margin is below tolerance x scale. Were the bound
        twice that, it would forgive whatever the elementwise tolerance lets pass (elements off
        by at most e move a margin by at most 2e) and the labels would never decide anything.
        """
        labels = self._spec.labels
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
                forgiven=flip.margin < self._tolerance * self._scales[name],
            )
            self.flips.setdefault((name, sample, flip.candidate), seen)
            if not seen.forgiven:
                unforgiven.append(
                    f"golden sample {sample} becomes {seen.candidate!r} in place of "
                    f"{seen.reference!r} (margin {seen.margin:.3g})"
                )
        return "; ".join(unforgiven[:3]) + (" ..." if len(unforgiven) > 3 else "")

    def _tell_apart(self, truth: Tensors, alone: Tensors) -> None:
        """Where the reference tells samples apart, the candidate must."""
        for spec in self._spec.outputs:
            if all_alike(truth[spec.name]):
                continue
            constant = all_alike(alone[spec.name])
            self.checks.append(
                ShapeParity(
                    check="distinct",
                    batch=1,
                    output=spec.name,
                    max_abs=None,
                    max_rel=None,
                    scale=self._scales[spec.name],
                    worst_index=(),
                    passed=not constant,
                    reason=f"{spec.name!r} is the same for all {self.samples} golden samples"
                    if constant
                    else "",
                )
            )
