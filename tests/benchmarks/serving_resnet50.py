"""ResNet-50 on a real Triton server against ONNX Runtime in this process.

The network has random, seeded weights: they cost what trained ones cost. It goes the whole way
(train a head on a few digits, export, verify, package, serve), then `tlexport bench` asks
in-process ONNX Runtime and the server over gRPC, HTTP and shared memory in turns, at the same
thread budget, one and four requests in flight. The target: gRPC >= 0.90 of in-process.
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

TARGET = 0.90
CONCURRENCY = (1, 4)


def prepared(root: Path, backbone: str) -> tuple[Path, Path]:
    """A bundle, verified, and its repository: one instance with all the cores there are."""
    data = digits.write(root / "digits", per_class=4)
    bundle, repository = root / "resnet50.bundle", root / "repository"
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


def main() -> None:
    """Measure, print the tables and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="torchvision/resnet50")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--round-s", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the reports there")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        reports = measured(*prepared(Path(folder), arguments.backbone), arguments)
    for report in reports:
        draw(report, console)
        console.print()
    for report in reports:
        grpc = report.rows[1]
        verdict = "reached" if grpc.speedup.low >= TARGET else "not settled: the machine is noisy"
        verdict = "MISSED" if grpc.speedup.high < TARGET else verdict
        console.print(
            f"gRPC / in-process at {grpc.concurrency} in flight: {grpc.speedup.value:.3f} "
            f"({grpc.speedup.low:.3f} .. {grpc.speedup.high:.3f}); target {TARGET:.2f} {verdict}"
        )
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(reports)))


if __name__ == "__main__":
    main()
