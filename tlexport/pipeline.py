"""The main job: every stage in a row, on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from tlexport.environment import hold_alone
from tlexport.errors import ParityError
from tlexport.options import (
    BenchOptions,
    ExportOptions,
    PackageOptions,
    RunOptions,
    RuntimeOptions,
    ServeOptions,
    VerifyOptions,
)
from tlexport.progress import Progress, silent
from tlexport.reports import ParityReport, RunReport
from tlexport.stages.bench import bench
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

ROUNDS = 10


def run(
    data: Path | str,
    output: Path | str,
    options: RunOptions | None = None,
    *,
    progress: Progress = silent,
    tell: Callable[[msgspec.Struct], None] = lambda report: None,
) -> RunReport:
    """Train, export, verify, package, serve, verify what is served, bench; stop at a failure.

    `tell` is called with the report of each stage when it is done. What the stages before a
    failure wrote stays: the bundle, and the features in the cache.

    Raises:
        OptionError: several processes were launched together; only `train` divides its work.
        ParityError: the export, or the served model, does not answer as the original does.
        TlexportError: what a stage raises.
    """
    hold_alone("the whole job")
    options = options or RunOptions()
    output = str(output)

    trained = train(data, output, options.training, progress=progress)
    tell(trained)
    exported = export(output, ExportOptions(triton=options.triton), progress=progress)
    tell(exported)
    proof = verify(output, progress=progress)
    tell(proof)
    _hold(proof, output)
    packaging = PackageOptions(
        triton=options.triton, allow_signature_change=options.allow_signature_change
    )
    packaged = package(output, options.repository, packaging, progress=progress)
    tell(packaged)
    with serve(options.repository, ServeOptions(server=options.server), progress=progress) as up:
        tell(up.report)
        address = f"triton@{up.report.grpc}"
        asked = RuntimeOptions(model=packaged.model, version=str(packaged.version))
        served = verify(output, VerifyOptions(candidate=address), asked, progress=progress)
        tell(served)
        _hold(served, output)
        load = BenchOptions(
            runtimes=("eager@cpu", "ort@cpu", address),
            rounds=ROUNDS,
            max_rounds=ROUNDS,
            round_s=options.bench_s / ROUNDS,
        )
        measured = bench(output, load, asked, progress=progress)
        tell(measured)
    return RunReport(
        train=trained,
        export=exported,
        verify=proof,
        package=packaged,
        serve=up.report,
        served=served,
        bench=measured,
    )


def _hold(report: ParityReport, output: str) -> None:
    if not report.passed:
        failed = next(check for check in report.checks if not check.passed)
        raise ParityError(
            f"{report.candidate} to answer as {report.reference} does",
            got=failed.reason,
            fix=f"the report is in {output}/reports; nothing was put in service",
        )
