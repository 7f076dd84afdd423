"""Whether one runtime answers as another does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle, Golden
from tlexport.diagnosis import Fault
from tlexport.environment import environment
from tlexport.errors import BundleError, ExportError, SpecError
from tlexport.files import write_atomic
from tlexport.inquiry.causes import Case, causes, faults, walk_of
from tlexport.inquiry.extremes import extremes
from tlexport.inquiry.questions import SERVED_LABELS, Inquiry
from tlexport.inquiry.raw_files import hold_pipeline
from tlexport.inquiry.truth import Truth
from tlexport.measure.stats import mcnemar, paired_difference
from tlexport.options import RuntimeOptions, VerifyOptions
from tlexport.pages.parity import page
from tlexport.progress import Progress, silent
from tlexport.reports import AccuracyChange, Cause, Decided, ParityReport, Walk
from tlexport.runtimes import Runtime, connect, reference_of
from tlexport.spec import Probe

logger = logging.getLogger(__name__)

LISTED = 8
FEW = 5
"""Labels of which the overlap is told."""


def verify(
    bundle: Bundle | Path | str,
    options: VerifyOptions | None = None,
    runtime: RuntimeOptions | None = None,
    *,
    progress: Progress = silent,
) -> ParityReport:
    """Ask both runtimes the golden samples and judge what the candidate answers.

    The original is computed in float64 too, and a row may be off from that by at most `factor`
    times what the original's own rounding takes it off (in the artifact's precision; see
    `measure.floor`). Each sample is asked alone and in batches of 2, 7 and `max_batch`; a row in
    a batch must answer as alone, a permuted batch permuted, twice the same; then the probes of the
    task (other lengths, padding on either side), the ends of each input's range, and, with `data`,
    labelled examples. The reference must still answer what the bundle's golden outputs hold, and
    NaN and infinity fail. Where a server has a pipeline around the model, the golden files as they
    came go through it, too. Where it fails (or with `explain`), the file is taken apart to name the
    cause.

    Where the reference is the bundle's original and the candidate ran the artifact's file, the
    report is kept as `parity-<artifact>`, which `package` asks for; otherwise (a server, stored
    answers in place of an original) as `parity-<artifact>-<candidate>`. A bundle made of an ONNX
    file has no original in PyTorch: the answers that came with its samples are taken for it, or
    the imported file itself, unoptimised, and a share of the outputs' scale is allowed.

    Returns:
        The report, whether or not it passed.

    Raises:
        BundleError: weights, golden samples or artifact are missing, changed or stale.
        TlexportError: a runtime cannot be opened, or the reference does not answer.
    """
    options, runtime = options or VerifyOptions(), runtime or RuntimeOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    artifact, golden = home.artifact(runtime.artifact), home.golden()
    options = msgspec.structs.replace(options, reference=options.reference or reference_of(home))
    logger.debug("weights are whole: %s", home.weights)
    # Stored answers answer nothing else, and need no torch.
    stored = any(who.startswith("golden@") for who in (str(options.reference), options.candidate))
    task = None if stored else plugins.load("tasks", home.spec.task)
    probes = [] if task is None else _probes(home, task, golden, options.max_batch)
    seen = faults(home, artifact)  # what the file shows by itself, before anything runs
    with contextlib.ExitStack() as stack:
        truth = Truth(home, artifact.precision, options, runtime)
        stack.callback(truth.close)
        inquiry = Inquiry(truth, golden, probes, options, progress)
        case = Case(home=home, artifact=artifact, options=options, runtime=runtime, inquiry=inquiry)
        kind = f"parity-{artifact.name}-{options.candidate.partition('@')[0]}"
        accuracy, piped = None, []
        try:
            candidate = connect(options.candidate, home, runtime)
        except SpecError as error:
            inquiry.refused("answers", 1, error)
        except ExportError as error:  # the file itself will not open, whoever asks
            inquiry.refused("answers", 1, error)
            kind = f"parity-{artifact.name}"
        else:
            stack.callback(candidate.close)
            if _is_proof(home, artifact, truth.reference, candidate):
                kind = f"parity-{artifact.name}"
            served = str(candidate.facts().get("artifact_sha256") or "")
            case = dataclasses.replace(case, served_sha256=served)
            piped = _inquire(case, task, candidate)
            if options.data is not None:
                accuracy = _accuracy(home, options, (candidate, truth.reference), progress)
        lost = accuracy is not None and not accuracy.passed
        found, walked = _explained(case, seen, failed=lost)
    _hold_same(case)
    report = _report(case)
    report = msgspec.structs.replace(
        report,
        accuracy=accuracy,
        causes=(*found, *piped),
        walk=walked,
        decided=None if task is None else _decided(home, task, inquiry),
        passed=report.passed and (accuracy is None or accuracy.passed),
    )
    place = home.write_report(kind, report)
    write_atomic(place.with_suffix(".html"), page(report).encode())
    return report


def _inquire(case: Case, task: ModuleType | None, candidate: Runtime) -> list[Cause]:
    """Ask the candidate everything; causes of what a pipeline around it answers otherwise."""
    case.inquiry.run(candidate)
    facts = candidate.facts()
    _hold_labels(case.inquiry, facts.get("labels"), case.home.spec.labels)
    return hold_pipeline(case, task, facts)


def _probes(home: Bundle, task: ModuleType, golden: Golden, most: int) -> list[Probe]:
    """The task's own questions, and the ends of every input's range."""
    asked: list[Probe] = task.probes(home.spec, golden.inputs, most)
    return [*asked, *extremes(home.spec, golden.inputs)]


def _explained(
    case: Case, seen: Sequence[Fault], *, failed: bool
) -> tuple[tuple[Cause, ...], Walk | None]:
    """What the file itself shows, as checks where it is wrong whatever it answers; then causes.

    What a file shows that answers right all the same is for the notes.
    """
    outputs = ", ".join(output.name for output in case.home.spec.outputs)
    for fault in seen:
        if fault.deadly:
            case.inquiry.note(fault.cause.name, outputs, fault.cause.told)
    if case.failed or failed:
        return causes(case, seen)
    case.inquiry.truth.notes.extend(f"{each.cause.name}: {each.cause.told}" for each in seen)
    walk = walk_of(case) if case.options.explain else None
    # An answer that is right has no first value at fault, however a value inside it was folded.
    return (), None if walk is None else msgspec.structs.replace(walk, first=None, suspects=())


def _hold_labels(inquiry: Inquiry, told: Sequence[str] | None, labels: Sequence[str]) -> None:
    """Note where a server tells its clients other labels than the bundle's."""
    if told and list(told) != list(labels):
        inquiry.note(
            SERVED_LABELS,
            inquiry.truth.spec.outputs[0].name,
            f"the server tells the labels {', '.join(told[:LISTED])}; the bundle's are "
            f"{', '.join(labels[:LISTED])}",
        )


def _hold_same(case: Case) -> None:
    if case.home.artifact(case.runtime.artifact).sha256 != case.artifact.sha256:
        raise BundleError(
            f"{case.artifact.name} as it was when the verification began",
            got="another file in its place",
            fix="run the same command again",
        )


def _is_proof(home: Bundle, artifact: Artifact, reference: Runtime, candidate: Runtime) -> bool:
    """True where the original itself was compared with this very file, opened by this process."""
    facts, manifest = reference.facts(), home.manifest
    original = facts.get("weights_sha256") == manifest.weights_sha256
    if not manifest.original and manifest.answered_by == "samples":
        original |= facts.get("golden_sha256") == manifest.golden_sha256
    return original and candidate.facts().get("opened_sha256") == artifact.sha256


def _accuracy(
    home: Bundle,
    options: VerifyOptions,
    asked: tuple[Runtime, Runtime],
    progress: Progress,
) -> AccuracyChange:
    """Candidate and reference on the same labelled examples."""
    from tlexport.inquiry.tally import labelled, refuse_broken, tally  # tasks import torch

    data = str(options.data)
    examples = labelled(home, data, options.columns)
    found = tally(home, examples, asked, options.max_batch, progress)
    refuse_broken(found, len(examples), skip_broken=False)
    ours, theirs = found.scores()
    change = paired_difference(found.right, found.wrong, found.examples)
    return AccuracyChange(
        data=data,
        examples=found.examples,
        reference=theirs.accuracy,
        candidate=ours.accuracy,
        difference=change,
        right=found.right,
        wrong=found.wrong,
        p_value=mcnemar(found.right, found.wrong),
        largest_change=found.largest_change,
        allowed=options.max_accuracy_drop,
        passed=change.value >= -options.max_accuracy_drop,
    )


def _decided(home: Bundle, task: ModuleType, inquiry: Inquiry) -> Decided | None:
    """What changes of the decisions on the golden samples, each asked alone."""
    spec, ours, theirs = home.spec, inquiry.alone, inquiry.truth.answers
    if ours is None or not spec.labels:
        return None
    name = spec.outputs[0].name
    shape = (inquiry.samples, len(spec.labels))
    if (
        ours[name].shape != shape
        or theirs[name].shape != shape
        or not np.isfinite(ours[name]).all()
    ):
        return None
    want, got = task.decide(spec, theirs), task.decide(spec, ours)
    few = min(FEW, len(spec.labels))
    common = [
        len(set(first[:few]) & set(second[:few])) / few
        for first, second in zip(want.order, got.order, strict=True)
    ]
    return Decided(
        samples=inquiry.samples,
        flips=int((want.order[:, 0] != got.order[:, 0]).sum()),
        top5=float(np.mean(common)) if len(spec.labels) > FEW else None,
        largest_change=float(np.abs(want.by_label() - got.by_label()).max()),
    )


def _report(case: Case) -> ParityReport:
    home, artifact, options, inquiry = case.home, case.artifact, case.options, case.inquiry
    truth = inquiry.truth
    answers = [check for check in inquiry.checks if check.check == "answers"]
    found = tuple(inquiry.flips.values())
    worst = max(answers, key=lambda check: check.ratio or 0.0, default=None)
    floor = truth.criterion == "noise floor"
    return ParityReport(
        reference=str(options.reference),
        candidate=options.candidate,
        artifact=artifact.name,
        artifact_sha256=artifact.sha256,
        weights_sha256=home.manifest.weights_sha256,
        precision=artifact.precision,
        criterion=truth.criterion,
        factor=options.factor if floor else None,
        tolerance=truth.tolerance if truth.criterion == "share of scale" else None,
        atol=options.atol,
        rtol=options.rtol,
        samples=inquiry.samples,
        checks=tuple(inquiry.checks),
        flips=found,
        decided=None,
        accuracy=None,
        max_abs=max((c.max_abs for c in answers if c.max_abs is not None), default=0.0),
        max_rel=max((c.max_rel for c in answers if c.max_rel is not None), default=0.0),
        ratio=worst.ratio if worst else None,
        own=worst.own if worst else None,
        causes=(),
        walk=None,
        notes=tuple(dict.fromkeys(truth.notes)),
        passed=all(c.passed for c in inquiry.checks) and all(f.forgiven for f in found),
        environment=environment(),
    )
