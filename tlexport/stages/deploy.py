"""A verified artifact goes live, or the old version stays."""

from __future__ import annotations

from pathlib import Path

from tlexport.bundle import Bundle
from tlexport.errors import RepositoryError
from tlexport.options import DeployOptions
from tlexport.progress import Progress, silent
from tlexport.reports import DeployReport
from tlexport.serving import pipeline, repository, rollout, store
from tlexport.serving.store import Store
from tlexport.stages import _gate
from tlexport.stages._change import Change
from tlexport.stages._version import Proven, hold_rules, proven_version


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
    the one or the other. Read `passed`: where it is False the old version serves as before.

    Raises:
        ParityError: there is no passing parity report of this very file.
        OptionError, BundleError: as from `package`.
        RepositoryError: another signature, a model with a pipeline, another repository than the
            server's, or one that cannot be written.
        ServerError: nobody answers, or the server does not load what it is told to.
    """
    options = options or DeployOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    proven = proven_version(home, options.packaging)
    repository.hold_names([proven.new])
    hold_rules([proven.new], options.packaging.triton)
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
    if pipeline.there(work.folder, change.model) is not None:
        raise RepositoryError(
            f"a model without a pipeline around it, to change {change.model!r} alone",
            got=f"{pipeline.pipeline_of(change.model)!r}, whose steps change together",
            fix="run `tlexport package`, which makes all of them anew",
        )
    rollout.sweep(work.folder, change.model)
    before = change.align(work)
    if not packaging.allow_signature_change:
        repository.hold_signature(work.folder / change.model, new)
    number = rollout.stage_new(work.folder, new)
    question = _gate.of_bundle(home, proven.report, packaging.max_batch or max(_gate.BATCHES))
    fault = change.run(
        work, number, question, lambda: rollout.publish(work.folder, change.model, number)
    )
    removed: tuple[int, ...] = ()
    if fault is None and options.keep_on_disk:
        removed = rollout.prune(work.folder, change.model, options.keep_on_disk)
        work.push()
    return DeployReport(
        repository=work.shown,
        server=change.where,
        model=change.model,
        version=number,
        before=before,
        served=number if fault is None else before,
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
