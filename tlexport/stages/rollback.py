"""A model goes back to the version that served before."""

from __future__ import annotations

from pathlib import Path

from tlexport.errors import OptionError, RepositoryError
from tlexport.options import RollbackOptions
from tlexport.progress import Progress, silent
from tlexport.reports import RollbackReport
from tlexport.serving import pipeline, repository, rollout, store
from tlexport.serving.store import Store
from tlexport.stages._change import Change
from tlexport.stages._gate import BATCHES, Question
from tlexport.stages._truth import SHARES


def rollback(
    place: Path | str = "model_repository",
    options: RollbackOptions | None = None,
    *,
    progress: Progress = silent,
) -> RollbackReport:
    """Have the server serve the version before the one in service, with what belongs to it.

    That version is asked its golden samples under another name first, as in `deploy`. A second
    time goes back one more. Read `passed`: where it is False all is as before.

    Raises:
        RepositoryError: no such model, nothing to go back to, a model with a pipeline, another
            repository than the server's, or one that cannot be written.
        OptionError: there are several models and none was named.
        ServerError: nobody answers, or the server does not load what it is told to.
    """
    options = options or RollbackOptions()
    model = _chosen(place, options.name)
    change = Change(options.server, model, options.timeout_s)
    try:
        change.hold_server()
        progress("rollback", 1, 3)
        with store.opened(place, model, progress) as work:
            report = _rolled_back(change, work)
    finally:
        change.close()
    progress("rollback", 3, 3)
    return report


def _rolled_back(change: Change, work: Store) -> RollbackReport:
    folder = work.folder / change.model
    _hold_alone(change.model, work)
    rollout.sweep(work.folder, change.model)
    change.align(work)
    served = rollout.standing(folder).served
    if len(served) < 2:
        there = ", ".join(map(str, repository.versions(folder))) or "none"
        raise RepositoryError(
            f"a version of {change.model!r} that served before {served[-1] if served else 'any'}",
            got=f"none (versions there are: {there})",
            fix="deploy the version you want: `tlexport deploy BUNDLE REPOSITORY`",
        )
    number, left = served[-2], served[:-2]
    rollout.stage_again(work.folder, change.model, number)
    inputs, outputs = rollout.golden(folder / str(number))
    origin = rollout.origin(folder / str(number))
    if not inputs:
        change.notes.append(f"version {number} has no golden samples: loading is all it proved")
    question = Question(
        bundle=None,
        labels=rollout.labels_of(folder / str(number)),
        inputs=inputs,
        outputs=outputs,
        share=SHARES.get(origin.artifact.rpartition("-")[2] if origin else "fp32", SHARES["fp32"]),
        largest=max(BATCHES),
    )
    fault = change.run(
        work, number, question, lambda: rollout.serve_again(work.folder, change.model, number)
    )
    return RollbackReport(
        repository=work.shown,
        server=change.where,
        model=change.model,
        before=served[-1],
        version=number,
        served=number if fault is None else served[-1],
        artifact_sha256=origin.artifact_sha256 if origin else "",
        checks=tuple(change.checks),
        left=left if fault is None else (*left, number),
        notes=tuple(change.notes),
        fault=fault,
        passed=fault is None,
    )


def _chosen(place: Path | str, name: str | None) -> str:
    found = store.names(place)
    if name in found:
        return str(name)
    if name is not None:
        raise RepositoryError(
            f"a model {name!r} in {str(place)!r}",
            got=", ".join(found) or "no model",
            fix="pass --name with one that is there",
        )
    if len(found) != 1:
        raise OptionError(
            f"a model of {str(place)!r} to be named",
            got=f"{len(found)} models: {', '.join(found)}",
            fix="pass --name NAME",
        )
    return found[0]


def _hold_alone(model: str, work: Store) -> None:
    if pipeline.there(work.folder, model) is not None:
        raise RepositoryError(
            f"a model without a pipeline around it, to change {model!r} alone",
            got=f"{pipeline.pipeline_of(model)!r}, whose steps change together",
            fix="run `tlexport package` with the older bundle, which makes all of them anew",
        )
