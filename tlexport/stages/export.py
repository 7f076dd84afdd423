"""A bundle's model becomes an artifact of a target."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import BundleError
from tlexport.files import cannot_write
from tlexport.options import ExportOptions
from tlexport.progress import Progress, silent
from tlexport.reports import ExportReport


def export(
    bundle: Bundle | Path | str,
    options: ExportOptions | None = None,
    *,
    progress: Progress = silent,
) -> ExportReport:
    """Write the artifact into the bundle; one that is whole, current and as asked for is kept.

    Raises:
        ExportError: the model cannot become what was asked.
        OptionError: no such target or Triton release.
        BundleError: the bundle is damaged or cannot be written.
    """
    options = options or ExportOptions()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    target = plugins.load("targets", options.target)
    current = None if options.force else _current(bundle, options)
    if current is not None:
        return _report(bundle, current, options, reused=True)
    progress(f"export to {options.target}", 0, 1)
    try:
        with tempfile.TemporaryDirectory(dir=bundle.root, prefix=".export.") as folder:
            artifact = target.export(bundle, Path(folder), options)
            bundle.add_artifact(artifact, Path(folder))
    except OSError as error:
        raise cannot_write(bundle.root, error) from error
    progress(f"export to {options.target}", 1, 1)
    report = _report(bundle, artifact, options, reused=False)
    bundle.write_report(f"export-{artifact.name}", report)
    return report


def _current(bundle: Bundle, options: ExportOptions) -> Artifact | None:
    for name in bundle.artifacts():
        try:
            artifact = bundle.artifact(name)
        except BundleError:  # stale or damaged: made again
            continue
        if artifact.target == options.target and artifact.options.get("triton") == options.triton:
            return artifact
    return None


def _report(
    bundle: Bundle, artifact: Artifact, options: ExportOptions, *, reused: bool
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
    )
