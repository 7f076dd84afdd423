"""A verified artifact becomes a version in a repository."""

from __future__ import annotations

from pathlib import Path

from tlexport.bundle import Bundle
from tlexport.inquiry.steps import pipeline_around
from tlexport.options import PackageOptions
from tlexport.progress import Progress, silent
from tlexport.publishing.version import GOLDEN_KEPT, hold_rules, proven_version
from tlexport.reports import PackageReport
from tlexport.serving import config, pipeline, repository, store


def package(
    bundle: Bundle | Path | str,
    place: Path | str = "model_repository",
    options: PackageOptions | None = None,
    *,
    progress: Progress = silent,
) -> PackageReport:
    """Write the next version of the model into the repository at `place`, whole or not at all.

    Only an artifact that was proven equal to the original is taken: the bundle must hold a passing
    parity report of this very file and these very weights. With a pipeline for raw files, asked for
    or there already, its models appear together with it, or nothing does.

    Raises:
        ParityError: there is no such report, it did not pass, or it is of another file.
        OptionError: more threads than cores, an unknown release, one that cannot read the file, or
            a pipeline for a model that raw files mean nothing to.
        BundleError: the artifact is missing, changed or stale, or a pipeline's golden files are.
        RepositoryError: the model in place has another signature, it cannot be written, or a
            server would refuse it (then nothing is written).
    """
    options = options or PackageOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    progress("package", 0, 2)
    proven = proven_version(home, options)
    new = proven.new
    settings = new.settings
    progress("package", 1, 2)
    with store.readable(place, settings.name) as folder:
        before = pipeline.there(folder, settings.name)
    made = pipeline_around(home, new.spec, options, before)
    together = pipeline.around(new, pipeline.few(made, GOLDEN_KEPT)) if made else (new,)
    hold_rules(together, options.triton)
    with store.opened(place, settings.name, progress) as work:
        number = repository.install(work.folder, together, options.allow_signature_change)
        work.push()
        files = _files(work.folder / settings.name, number)
    progress("package", 2, 2)
    found = PackageReport(
        repository=str(place),
        model=settings.name,
        version=number,
        artifact_sha256=proven.artifact.sha256,
        max_batch=settings.max_batch,
        instances=settings.instances,
        threads=settings.threads,
        cores=proven.cores,
        triton_oldest=proven.triton_oldest,
        pipeline=together[-1].settings.name if len(together) > 1 else "",
        steps=tuple(step.model for step in together[-1].steps),
        files=files,
    )
    home.write_report("package", found)
    return found


def _files(model: Path, number: int) -> tuple[str, ...]:
    """The files of the model's own and of this version, below the model's folder."""
    own = [path for path in model.iterdir() if path.is_file()]
    below = [p for part in (config.WARMUP, str(number)) for p in (model / part).rglob("*")]
    shown = [p.relative_to(model) for p in (*own, *below) if p.is_file()]
    return tuple(sorted(str(path) for path in shown if not path.name.startswith(".")))
