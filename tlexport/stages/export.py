"""A bundle's model becomes an artifact of a target."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import BundleError, ExportError
from tlexport.files import cannot_write, hold_writable, scratch_folder
from tlexport.options import ExportOptions
from tlexport.progress import Progress, silent
from tlexport.reports import Candidate, ExportReport, PrecisionReport
from tlexport.stages._labelled import Labelled
from tlexport.stages._lowering import Precision, able, asked

COMPETING = ("fp16", "int8")
"""What `auto` tries: bf16 computes in fp32 on a CPU, so it cannot be the faster one."""


def export(
    bundle: Bundle | Path | str,
    options: ExportOptions | None = None,
    *,
    progress: Progress = silent,
) -> ExportReport:
    """Write the artifact into the bundle; one that is whole, current and as asked for is kept.

    A precision below fp32 is made of the fp32 artifact, which is made first where it is missing,
    and is an artifact of its own. With "auto" each candidate is, and the report is the fastest's.

    Raises:
        ExportError: the model cannot become what was asked, or no way holds the accuracy.
        OptionError: no such target, precision or Triton release.
        DataError: the labelled examples are not usable.
        BundleError: the bundle is damaged or cannot be written.
    """
    options = options or ExportOptions()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    able(options)
    if options.precision == "fp32":
        return _fp32(bundle, options, progress)
    labelled = Labelled(bundle, options) if options.data is not None else None
    if options.precision == "auto":
        return _fastest(bundle, options, labelled, progress)
    return _lowered(bundle, options, labelled, progress)


def _fp32(bundle: Bundle, options: ExportOptions, progress: Progress) -> ExportReport:
    target = plugins.load("targets", options.target)
    current = None if options.force else _current(bundle, options)
    if current is not None:
        return _report(bundle, current, options, reused=True)
    progress(f"export to {options.target}", 0, 1)
    try:
        with scratch_folder(bundle.root, ".export.") as folder:
            artifact = target.export(bundle, folder, options)
            bundle.add_artifact(artifact, folder)
    except OSError as error:
        raise cannot_write(bundle.root, error) from error
    progress(f"export to {options.target}", 1, 1)
    report = _report(bundle, artifact, options, reused=False)
    bundle.write_report(f"export-{artifact.name}", report)
    return report


def _plain(options: ExportOptions) -> ExportOptions:
    """The same for fp32, kept where it is current."""
    return ExportOptions(target=options.target, triton=options.triton)


@contextlib.contextmanager
def _source(bundle: Bundle, options: ExportOptions, progress: Progress) -> Iterator[Path]:
    """The fp32 file to lower, of the release asked for.

    The bundle's own, made where there is none. One that was made for another release is left as it
    is, for it may be verified and served: then there is a file for the time being.
    """
    plain = _plain(options)
    if _current(bundle, plain) is None and _current(bundle, plain, any_release=True) is not None:
        with scratch_folder(bundle.root, ".export.") as folder:
            target = plugins.load("targets", options.target)
            yield folder / target.export(bundle, folder, plain).file
    else:
        name = _fp32(bundle, plain, progress).artifact
        yield bundle.artifact_file(bundle.artifact(name))


def _lowered(
    bundle: Bundle, options: ExportOptions, labelled: Labelled | None, progress: Progress
) -> ExportReport:
    current = None if options.force else _current(bundle, options)
    if current is not None and current.options.get("asked") == asked(options, labelled):
        before = bundle.report(f"export-{current.name}", ExportReport)
        if before is not None and before.sha256 == current.sha256:
            return msgspec.structs.replace(before, reused=True)
    try:
        hold_writable(bundle.root / "artifacts")
        with _source(bundle, options, progress) as file:
            artifact, found = Precision(bundle, options, labelled, progress).make(file)
    except OSError as error:
        raise cannot_write(bundle.root, error) from error
    report = _report(bundle, artifact, options, reused=False, lowered=found)
    bundle.write_report(f"export-{artifact.name}", report)
    return report


def _fastest(
    bundle: Bundle,
    options: ExportOptions,
    labelled: Labelled | None,
    progress: Progress,
) -> ExportReport:
    """Make every candidate, and tell the fastest that holds the accuracy: fp32 where none is."""
    candidates, best, speed = [], _fp32(bundle, _plain(options), progress), 1.0
    for precision in COMPETING:
        wanted = msgspec.structs.replace(
            options, precision=precision, max_accuracy_drop=options.budget
        )
        try:
            report = _lowered(bundle, wanted, labelled, progress)
        except ExportError as error:
            name = f"{options.target}-{precision}"
            candidates.append(
                Candidate(artifact=name, accuracy=None, speedup=None, fault=error.got)
            )
            continue
        assert report.lowered is not None
        faster = report.lowered.speedup
        candidates.append(
            Candidate(
                artifact=report.artifact,
                accuracy=report.lowered.accuracy,
                speedup=faster,
                fault="" if faster.low > 1 else "not faster than fp32",
            )
        )
        if faster.low > 1 and faster.value > speed:
            best, speed = report, faster.value
    chosen = msgspec.structs.replace(best, candidates=tuple(candidates))
    bundle.write_report("export-auto", chosen)
    return chosen


def _current(
    bundle: Bundle, options: ExportOptions, *, any_release: bool = False
) -> Artifact | None:
    for name in bundle.artifacts():
        try:
            artifact = bundle.artifact(name)
        except BundleError:  # stale or damaged: made again
            continue
        wanted = (options.target, options.precision)
        fits = any_release or artifact.options.get("triton") == options.triton
        if (artifact.target, artifact.precision) == wanted and fits:
            return artifact
    return None


def _report(
    bundle: Bundle,
    artifact: Artifact,
    options: ExportOptions,
    *,
    reused: bool,
    lowered: PrecisionReport | None = None,
) -> ExportReport:
    folder = bundle.artifact_file(artifact).parent
    root = bundle.root / "artifacts" / artifact.name
    return ExportReport(
        artifact=artifact.name,
        file=str(folder / Path(artifact.file).name),
        sha256=artifact.sha256,
        size_bytes=sum((root / file).stat().st_size for file in artifact.files),
        opset=artifact.options.get("opset"),
        ir_version=artifact.options.get("ir_version"),
        triton_oldest=artifact.options.get("triton_oldest") or "none",
        triton=options.triton,
        reused=reused,
        lowered=lowered,
    )
