"""ResNet-18 and ResNet-50 on a real Triton server against ONNX Runtime in this process.

The networks have random, seeded weights: they cost what trained ones cost. Each goes the whole way
(train a head on a few digits, export, verify, package, serve), then `tlexport bench` asks
in-process ONNX Runtime and the server over gRPC, HTTP and shared memory in turns, at the same
thread budget, one, four and eight requests in flight. The targets: gRPC >= 0.95 of in-process
throughput at four and eight, and at one at most 0.8 ms above it.
Run it on an idle machine with

    .venv/bin/python tests/benchmarks/serving_resnet50.py [--rounds N] [--round-s S] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits

from tlexport.cli import _terminal
from tlexport.cli.bench import draw
from tlexport.environment import cores
from tlexport.options import BenchOptions, PackageOptions, RuntimeOptions, TrainOptions
from tlexport.reports import BenchReport
from tlexport.stages.bench import bench
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

TARGET = 0.95
ABOVE_MS = 0.8
CONCURRENCY = (1, 4, 8)
BACKBONES = ("torchvision/resnet18", "torchvision/resnet50")


def prepared(root: Path, backbone: str) -> tuple[Path, Path]:
    """A bundle, verified, and its repository: one instance with all the cores there are."""
    data = digits.write(root / backbone / "digits", per_class=4)
    name = backbone.rpartition("/")[2]
    bundle, repository = root / f"{name}.bundle", root / f"{name}.repository"
    train(data, bundle, TrainOptions(backbone=backbone, weights="random", trials=1, golden=8))
    export(bundle)
    assert verify(bundle).passed
    package(bundle, repository, PackageOptions(instances=1, threads=cores()))
    return bundle, repository


def measured(bundle: Path, repository: Path, arguments: argparse.Namespace) -> list[BenchReport]:
    """One report per concurrency."""
    reports = []
    with serve(repository) as serving, _terminal.progress() as progress:
        told = serving.report
        runtimes = ["ort@cpu", f"triton@{told.grpc}", f"triton@http://{told.http}"]
        runtimes.append(f"triton@shm://{told.grpc}")
        for concurrency in CONCURRENCY:
            options = BenchOptions(
                runtimes=tuple(runtimes),
                batches=(1,),
                concurrencies=(concurrency,),
                rounds=arguments.rounds,
                round_s=arguments.round_s,
            )
            budget = RuntimeOptions(threads=cores(), instances=1)
            reports.append(bench(bundle, options, budget, progress=progress))
    return reports


def verdict(report: BenchReport) -> str:
    """Whether gRPC reached its mark beside the process's own ONNX Runtime."""
    process, grpc = report.rows[0], report.rows[1]
    told = f"{report.model}, {grpc.concurrency} in flight: gRPC / in-process "
    told += f"{grpc.speedup.value:.3f} ({grpc.speedup.low:.3f} .. {grpc.speedup.high:.3f})"
    if grpc.concurrency == 1:
        assert process.p50_ms is not None
        assert grpc.p50_ms is not None
        above = grpc.p50_ms.value - process.p50_ms.value
        verdict = "reached" if above <= ABOVE_MS else "MISSED"
        return f"{told}; {above:.2f} ms above at p50, target {ABOVE_MS} {verdict}"
    verdict = "reached" if grpc.speedup.low >= TARGET else "not settled: the machine is noisy"
    verdict = "MISSED" if grpc.speedup.high < TARGET else verdict
    return f"{told}; target {TARGET:.2f} {verdict}"


def main() -> None:
    """Measure, print the tables and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--round-s", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the reports there")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        reports = []
        for backbone in arguments.backbone or BACKBONES:
            reports += measured(*prepared(Path(folder), backbone), arguments)
    for report in reports:
        draw(report, console)
        console.print()
    for report in reports:
        console.print(verdict(report))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(reports)))


if __name__ == "__main__":
    main()
