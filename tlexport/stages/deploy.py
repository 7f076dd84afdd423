"""A verified artifact goes live, or the old version stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlexport.bundle import Bundle
from tlexport.inquiry.steps import pipeline_around
from tlexport.options import DeployOptions
from tlexport.progress import Progress, silent
from tlexport.publishing import gate
from tlexport.publishing.change import Change, Move
from tlexport.publishing.raw_gate import RawQuestion
from tlexport.publishing.version import GOLDEN_KEPT, Proven, hold_rules, proven_version
from tlexport.reports import DeployReport
from tlexport.serving import pipeline, repository, rollout, store
from tlexport.serving.store import Store


def deploy(
    bundle: Bundle | Path | str,
    place: Path | str = "model_repository",
    options: DeployOptions | None = None,
    *,
    progress: Progress = silent,
) -> DeployReport:
    """Put the next version into the repository at `place` and have its server serve it.

    The server loads it under another name and is asked the golden samples; only then does it
    replace the version in service, which is asked once more. Requests meanwhile are answered by
    the one or the other. With a pipeline for raw files, asked for or there already, its models
    change together, and the golden files are asked as well. Read `passed`: where it is False the
    old version serves as before.

    Raises:
        ParityError: there is no passing parity report of this very file.
        OptionError, BundleError: as from `package`.
        RepositoryError: another signature, another repository than the server's, or one that
            cannot be written.
        ServerError: nobody answers, or the server does not load what it is told to.
    """
    options = options or DeployOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    proven = proven_version(home, options.packaging)
    repository.hold_names([proven.new])
    change = Change(options.server, proven.new.settings.name, options.timeout_s)
    try:
        change.hold_server()
        progress("deploy", 1, 3)
        with store.opened(place, change.model, progress) as work:
            report = _deployed(home, proven, change, work, options)
    finally:
        change.close()
    progress("deploy", 3, 3)
    home.write_report("deploy", report)
    return report


def _deployed(
    home: Bundle, proven: Proven, change: Change, work: Store, options: DeployOptions
) -> DeployReport:
    new, packaging = proven.new, options.packaging
    before = pipeline.there(work.folder, change.model)
    made = pipeline_around(home, new.spec, packaging, before)
    together = pipeline.around(new, pipeline.few(made, GOLDEN_KEPT)) if made else (new,)
    repository.hold_names(together)
    hold_rules(together, packaging.triton)
    names = [each.settings.name for each in together]
    change.sweep(work)
    served = change.align(work, names)
    for each in together if not packaging.allow_signature_change else ():
        repository.hold_signature(work.folder / each.settings.name, each)
    number = rollout.stage_new(work.folder, together)
    move = Move(
        names=names,
        number=number,
        questions=_questions(home, proven, made, packaging.max_batch or max(gate.BATCHES)),
        publish=lambda name, beside: rollout.publish(work.folder, name, number, beside),
    )
    fault = change.run(work, move)
    removed = _pruned(work, names, options.keep_on_disk) if fault is None else ()
    return DeployReport(
        repository=work.shown,
        server=change.where,
        model=change.model,
        pipeline=names[-1] if made else "",
        version=number,
        before=served,
        served=number if fault is None else served,
        artifact=proven.artifact.name,
        artifact_sha256=proven.artifact.sha256,
        checks=tuple(change.checks),
        load_s=change.load_s,
        change_s=change.change_s,
        removed=removed,
        notes=tuple(change.notes),
        fault=fault,
        passed=fault is None,
    )


def _questions(
    home: Bundle, proven: Proven, made: pipeline.Pipeline | None, largest: int
) -> dict[str, gate.Question]:
    """All golden samples for the model, and all golden files for the pipeline around it."""
    name = proven.new.settings.name
    arrays = gate.of_bundle(home, proven.report, largest)
    found: dict[str, gate.Question] = {name: arrays}
    if made is not None:
        found[pipeline.pipeline_of(name)] = RawQuestion(
            files=made.raw,
            golden=made.golden,
            share=arrays.share,
            largest=arrays.largest,
            forgiven=arrays.forgiven,
        )
    return found


def _pruned(work: Store, names: Sequence[str], keep: int) -> tuple[int, ...]:
    """Remove old versions from the disk, an ensemble's before those of its steps; which went."""
    removed: set[int] = set()
    for name in reversed(names) if keep else ():
        removed.update(rollout.prune(work.folder, name, keep))
        work.push()
    return tuple(sorted(removed))
