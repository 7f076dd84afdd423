"""A model goes back to the version that served before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlexport.errors import OptionError, RepositoryError
from tlexport.inquiry.truth import SHARES
from tlexport.options import RollbackOptions
from tlexport.progress import Progress, silent
from tlexport.publishing.change import Change, Move
from tlexport.publishing.gate import BATCHES, ArrayQuestion, Question
from tlexport.publishing.raw_gate import RawQuestion
from tlexport.reports import RollbackReport
from tlexport.serving import pipeline, repository, rollout, store
from tlexport.serving.store import Store


def rollback(
    place: Path | str = "model_repository",
    options: RollbackOptions | None = None,
    *,
    progress: Progress = silent,
) -> RollbackReport:
    """Have the server serve the version before the one in service, with what belongs to it.

    That version is asked its golden samples under another name first, as in `deploy`. A second
    time goes back one more. A pipeline around the model goes back with it. Read `passed`: where
    it is False all is as before.

    Raises:
        RepositoryError: no such model, nothing to go back to, another repository than the
            server's, or one that cannot be written.
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
    folder, names = work.folder, pipeline.moved_with(work.folder, change.model)
    change.sweep(work)
    change.align(work, names)
    served = _served_by_all(folder, names)
    number, left = served[-2], served[:-2]
    rollout.stage_again(folder, names, number)
    version = folder / change.model / str(number)
    origin = rollout.origin(version)
    questions = _questions(folder, names, change.model, number)
    if not questions:
        change.notes.append(f"version {number} has no golden samples: loading is all it proved")
    move = Move(
        names=names,
        number=number,
        questions=questions,
        publish=lambda name, beside: rollout.serve_again(folder, name, number, beside),
    )
    fault = change.run(work, move)
    return RollbackReport(
        repository=work.shown,
        server=change.where,
        model=change.model,
        pipeline=names[-1] if len(names) > 1 else "",
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


def _served_by_all(place: Path, names: Sequence[str]) -> tuple[int, ...]:
    """The versions that each of these has served, the last of them now.

    Raises:
        RepositoryError: there is none before the one in service.
    """
    *others, last = names
    served = [
        number
        for number in rollout.standing(place / last).served
        if all(number in repository.versions(place / name) for name in others)
    ]
    if len(served) < 2:
        there = ", ".join(map(str, repository.versions(place / last))) or "none"
        raise RepositoryError(
            f"a version of {last!r} that served before {served[-1] if served else 'any'}",
            got=f"none (versions there are: {there})",
            fix="deploy the version you want: `tlexport deploy BUNDLE REPOSITORY`",
        )
    return tuple(served)


def _questions(place: Path, names: Sequence[str], model: str, number: int) -> dict[str, Question]:
    """What was kept with a version to be asked: golden samples, and files for its pipeline."""
    version, last = place / model / str(number), place / names[-1] / str(number)
    origin = rollout.origin(version)
    share = SHARES.get(origin.artifact.rpartition("-")[2] if origin else "fp32", SHARES["fp32"])
    inputs, outputs = rollout.golden(version)
    golden = pipeline.golden_of(last)
    found: dict[str, Question] = {}
    if inputs:
        found[model] = ArrayQuestion(
            bundle=None,
            labels=rollout.labels_of(version),
            inputs=inputs,
            outputs=outputs,
            share=share,
            largest=max(BATCHES),
        )
    if golden is not None:
        found[names[-1]] = RawQuestion(
            files=tuple(last / file for file in golden.raw),
            golden=golden,
            share=share,
            largest=max(BATCHES),
        )
    return found


def _chosen(place: Path | str, name: str | None) -> str:
    there = store.names(place)
    found = sorted({pipeline.main_of(each, there) for each in there})
    if name in there:
        return pipeline.main_of(str(name), there)
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
