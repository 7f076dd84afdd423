"""What a verified artifact is as a version of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tlexport.bundle import Artifact, Bundle, encode
from tlexport.environment import cores, versions
from tlexport.errors import BundleError, OptionError, ParityError, RepositoryError
from tlexport.files import sha256_of, sha256_of_json
from tlexport.inquiry.truth import SHARES
from tlexport.options import FACTOR, PackageOptions
from tlexport.reports import ParityReport
from tlexport.serving import config, repository
from tlexport.serving.lint import lint
from tlexport.serving.releases import oldest_that_reads, readers, release
from tlexport.spec import cast, rows

WIDEST_TOLERANCE = 0.01
"""A report that lets more pass, as a share of the outputs' scale, proves nothing."""

GOLDEN_KEPT = 4
"""Golden samples that travel with a version, so that a server can be asked one."""


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """A version to be, its artifact and the proof of it; `cores` are those of this machine."""

    new: repository.NewVersion
    artifact: Artifact
    report: ParityReport
    cores: int

    @property
    def triton_oldest(self) -> str:
        """The oldest Triton release that reads the file."""
        return _oldest(self.artifact)


def proven_version(home: Bundle, options: PackageOptions) -> Proven:
    """The artifact that was asked for as a version, held against its proof and the request.

    Raises:
        ParityError: there is no passing report of this very file, or not up to this batch.
        OptionError: more threads than cores, an unknown release, or one that cannot read the file.
        BundleError: the artifact is missing, changed or stale.
    """
    artifact = home.artifact(options.artifact)
    report = proof(home, artifact)
    _hold_batch(home, report, options.max_batch)
    _hold_release(artifact, options.triton)
    granted = cores()
    instances, threads = config.thread_budget(options.instances, options.threads, granted)
    settings = config.Settings(
        name=options.name or home.spec.name,
        backend=artifact.triton_backend,
        max_batch=options.max_batch,
        queue_delay_us=options.queue_delay_us,
        instances=instances,
        threads=threads,
        keep_versions=options.keep_versions,
        preferred=options.preferred_batches,
    )
    new = _new_version(home, artifact, report, settings)
    return Proven(new=new, artifact=artifact, report=report, cores=granted)


def proof(home: Bundle, artifact: Artifact) -> ParityReport:
    """The passing parity report of this very artifact.

    Raises:
        ParityError: there is none, it did not pass, or it is of another file or other weights.
    """
    expected = f"a passing parity report of {artifact.name} {artifact.sha256[:12]}"
    chosen = "" if artifact.precision == "fp32" else f" --artifact {artifact.name}"
    fix = f"run `tlexport verify {home.root}{chosen}`"
    try:
        report = home.report(f"parity-{artifact.name}", ParityReport)
    except BundleError as error:
        raise ParityError(expected, got=error.got, fix=f"{fix} again") from error
    if report is None:
        raise ParityError(expected, got="no report", fix=fix)
    if report.artifact != artifact.name or report.artifact_sha256 != artifact.sha256:
        raise ParityError(
            expected,
            got=f"a report of {report.artifact} {report.artifact_sha256[:12]}",
            fix=f"the file is another since it was verified: {fix} again",
        )
    _hold_strict(report, expected, fix)
    if report.weights_sha256 != home.manifest.weights_sha256:
        raise ParityError(
            f"a parity report of the weights {home.manifest.weights_sha256[:12]}",
            got=f"one of {report.weights_sha256[:12]}",
            fix=f"run `tlexport export {home.root}` and `tlexport verify {home.root}` again",
        )
    if not report.passed or not report.checks:
        failed = [check for check in report.checks if not check.passed]
        reason = failed[0].reason or f"{failed[0].check} of {failed[0].output}" if failed else ""
        flipped = sum(not flip.forgiven for flip in report.flips)
        raise ParityError(
            expected,
            got=f"one that failed: {reason or f'{flipped} changed labels'}"
            if report.checks
            else "one without a single check",
            fix="export it again, or find out why the runtimes differ",
        )
    return report


def _hold_strict(report: ParityReport, expected: str, fix: str) -> None:
    """Refuse a report whose criterion lets so much pass that it proves nothing.

    Raises:
        ParityError: naming the criterion.
    """
    scale = min((check.scale for check in report.checks if check.scale), default=1.0)
    share = (report.atol or 0.0) / scale + (report.rtol or 0.0)
    widest = max(SHARES.get(report.precision, 0.0), WIDEST_TOLERANCE)
    for name, got, most in (
        ("--factor", report.factor, FACTOR),
        ("--tolerance", report.tolerance, widest),
        ("--atol and --rtol, as a share of the outputs' scale,", share, widest),
    ):
        if got is not None and got > most:
            raise ParityError(
                f"{expected}, at {name} of at most {most:g}",
                got=f"one at {got:g}",
                fix=f"{fix} with one that proves something",
            )


def _hold_batch(home: Bundle, report: ParityReport, max_batch: int) -> None:
    """Refuse to serve batches larger than any that was compared with the original.

    Raises:
        OptionError: the model has no free batch axis.
        ParityError: no batch that large was compared.
    """
    fixed = [tensor.name for tensor in home.spec.inputs if not tensor.batched]
    if max_batch and fixed:
        raise OptionError(
            "--max-batch 0 for a model whose batch axis is a constant",
            got=f"--max-batch {max_batch}, and {', '.join(fixed)} with a constant first axis",
            fix="pass --max-batch 0, or export the model again with a dynamic batch axis",
        )
    proven = max(check.batch for check in report.checks)
    if max_batch > proven:
        raise ParityError(
            f"answers proven up to batch {max_batch}",
            got=f"a report of batches up to {proven}",
            fix=f"run `tlexport verify {home.root} --max-batch {max_batch}`, or package with "
            f"--max-batch {proven}",
        )


def _hold_release(artifact: Artifact, triton: str | None) -> None:
    if triton is None:
        return
    wanted = release(triton)
    opsets, ir_version = _versions(artifact)
    if not opsets or wanted.reads(opsets, ir_version):
        return
    able = readers(opsets, ir_version)
    named = {"ai.onnx": "opset"}
    told = ", ".join(f"{named.get(each, each)} {version}" for each, version in opsets.items())
    raise OptionError(
        f"a file that Triton {triton} reads: opset <= {wanted.max_opset}, "
        f"IR <= {wanted.max_ir_version}, ai.onnx.ml <= {wanted.max_ml_opset}",
        got=f"{told}, IR {ir_version} in {artifact.name}",
        fix=f"run `tlexport export --triton {triton}` and verify it, or serve it with "
        + (f"{able[0].triton} or newer" if able else "no release known so far"),
    )


def hold_rules(together: Sequence[repository.NewVersion], triton: str | None) -> None:
    """Hold versions against the server's load rules in a repository of its own.

    Not in the real one: a server that polls would take it up, and its configuration would stand
    in place of that of the version in service.

    Raises:
        RepositoryError: a server would refuse it; the rule is named.
    """
    wanted = release(triton) if triton else None
    with tempfile.TemporaryDirectory(prefix="tlexport.package.") as folder:
        trial = Path(folder) / "trial"  # what is staged lies beside a repository
        repository.install(trial, together)
        for each in lint(trial, triton=wanted, cores=cores()):
            if each.severity == "error":
                raise RepositoryError(
                    f"{each.model!r} as a Triton server loads it: {each.expected}",
                    got=f"{each.got} ({each.rule}, {each.path.relative_to(trial)})",
                    fix=each.fix,
                )


def _versions(artifact: Artifact) -> tuple[dict[str, int], int]:
    """Opsets by domain, and IR version; nothing of both for an artifact that is no ONNX file."""
    told = artifact.options
    if not told.get("opset") or not told.get("ir_version"):
        return {}, 0
    return told.get("opsets") or {"ai.onnx": told["opset"]}, told["ir_version"]


def _oldest(artifact: Artifact) -> str:
    opsets, ir_version = _versions(artifact)
    found = oldest_that_reads(opsets, ir_version) if opsets else None
    return found.triton if found else "unknown"


def _new_version(
    home: Bundle, artifact: Artifact, report: ParityReport, settings: config.Settings
) -> repository.NewVersion:
    golden, spec = home.golden(), home.spec_of(artifact)
    kept = slice(0, GOLDEN_KEPT)
    return repository.NewVersion(
        spec=spec,
        settings=settings,
        files=_laid_out(home, artifact),
        origin=repository.Origin(
            bundle_sha256=sha256_of(home.root / "bundle.json"),
            artifact=artifact.name,
            artifact_sha256=artifact.sha256,
            weights_sha256=home.manifest.weights_sha256,
            golden_sha256=home.manifest.golden_sha256,
            parity_sha256=sha256_of_json(encode(report).decode()),
            parity=f"{report.candidate} against {report.reference}: max_abs {report.max_abs:.3g} "
            f"on {report.samples} samples",
            versions=artifact.versions | {"tlexport": versions().get("tlexport", "unknown")},
        ),
        golden_inputs=cast(rows(golden.inputs, kept), spec.inputs),
        golden_outputs=cast(rows(golden.outputs, kept), spec.outputs),
    )


def _laid_out(home: Bundle, artifact: Artifact) -> tuple[tuple[Path, str], ...]:
    """Each file of the artifact and its path in the version folder.

    One file is `model.onnx` itself; several go into a folder of that name, as the server's
    backend documents it.
    """
    main = home.artifact_file(artifact)
    name = repository.MODEL_FILES.get(artifact.triton_backend, main.name)
    if len(artifact.files) == 1:
        return ((main, name),)
    root = home.root / "artifacts" / artifact.name
    files = []
    for file in artifact.files:
        source = root / file
        inner = name if source == main else str(source.relative_to(main.parent))
        files.append((source, f"{name}/{inner}"))
    return tuple(files)
