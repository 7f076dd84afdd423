"""What a card does: three networks, each way of running them, in one go of under ten minutes.

ResNet-50, BERT-base and a speech encoder (wav2vec 2.0 base) with random weights, which cost what
trained ones cost. Each is exported in fp32 and fp16; eager, torch.compile, ONNX Runtime's CUDA
(plain, and with IO binding and CUDA graphs), TensorRT where it is installed, and the embedded
Triton with KIND_GPU are asked at batch 1, 8 and 32. What cannot be opened is told in the table
and in the file, and is no failure but for ONNX Runtime's CUDA. It ends with the tables and one
JSON file. Run it, with all tests marked `gpu`, by

    make gpu-check
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits
from benchmarks import sequence_models as sequences

from tlexport.bundle import Bundle
from tlexport.cli._bench_tables import draw
from tlexport.errors import TlexportError
from tlexport.options import (
    BenchOptions,
    ExportOptions,
    PackageOptions,
    RuntimeOptions,
    TrainOptions,
    VerifyOptions,
)
from tlexport.reports import BenchReport
from tlexport.runtimes import connect
from tlexport.stages.bench import bench
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

BATCHES = (1, 8, 32)
BUDGET_S = 600.0
IN_PROCESS = ("eager@cuda:0", "compile@cuda:0", "ort@cuda:0", "ort@cuda:0-graph", "ort@tensorrt:0")


class Finding(msgspec.Struct, kw_only=True):
    """One network in one precision: the report, and what could not be run and why."""

    network: str
    precision: str
    report: BenchReport | None = None
    missing: dict[str, str] = {}


def resnet50(folder: Path) -> Path:
    """ResNet-50 with a head for ten digits."""
    data = digits.write(folder / "digits", per_class=4)
    options = TrainOptions(backbone="torchvision/resnet50", weights="random", trials=1, golden=32)
    train(data, folder / "resnet50.bundle", options)
    return folder / "resnet50.bundle"


def sequence(name: str, folder: Path) -> Path:
    """BERT-base over 128 tokens, or wav2vec 2.0 base over one second."""
    audio = name in sequences.SPEECH
    data = sequences.clips(folder / "clips") if audio else sequences.texts(folder / "t.csv")
    options = TrainOptions(
        task=f"{'audio' if audio else 'text'}-classification",
        backbone=sequences.backbone(name, folder),
        max_length=0 if audio else sequences.TOKENS,
        max_seconds=10 if audio else 0,
        trials=1,
        golden=2,
        val_fraction=0.3,
    )
    train(data, folder / f"{name}.bundle", options)
    return folder / f"{name}.bundle"


NETWORKS: dict[str, Callable[[Path], Path]] = {
    "resnet50": resnet50,
    "bert-base": functools.partial(sequence, "bert-base"),
    "wav2vec2-base": functools.partial(sequence, "wav2vec2-base"),
}


@contextlib.contextmanager
def served(bundle: Path, artifact: str, repository: Path) -> Iterator[str]:
    """The artifact on the embedded server, on the card."""
    options = PackageOptions(artifact=artifact, instances=1, max_batch=max(BATCHES))
    packaged = package(bundle, repository, options)
    config = repository / packaged.model / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
    with serve(repository) as serving:
        yield f"triton@{serving.report.grpc}"


def measured(network: str, bundle: Path, precision: str, folder: Path, round_s: float) -> Finding:
    """All runtimes that can be opened, in turns."""
    artifact = f"onnx-{precision}"
    budget = RuntimeOptions(artifact=artifact)
    finding = Finding(network=network, precision=precision)
    with contextlib.ExitStack() as stack:
        wanted = list(IN_PROCESS if precision == "fp32" else IN_PROCESS[2:])
        if importlib.util.find_spec("tensorrt") is None:
            finding.missing[wanted.pop()] = "TensorRT is not installed"
        try:
            place = folder / f"served-{network}-{precision}"
            wanted.append(stack.enter_context(served(bundle, artifact, place)))
        except TlexportError as error:
            finding.missing["triton, KIND_GPU"] = str(error)
        able = [name for name in wanted if _opens(name, bundle, budget, finding)]
        if able:
            options = BenchOptions(
                runtimes=tuple(able), batches=BATCHES, rounds=6, max_rounds=6, round_s=round_s
            )
            finding.report = bench(bundle, options, budget)
    return finding


def _opens(name: str, bundle: Path, budget: RuntimeOptions, finding: Finding) -> bool:
    """Whether it opens and answers at each batch size."""
    home = Bundle(bundle)
    try:
        runtime = connect(name, home, budget)
        try:
            from tlexport.traffic.asker import Asker

            asker = Asker(runtime, home.golden(), BATCHES)
            for batch in BATCHES:
                asker.check(batch)
        finally:
            runtime.close()
    except TlexportError as error:
        finding.missing[name] = str(error)
        return False
    return True


def all_of_it(folder: Path, round_s: float, console: Console) -> list[Finding]:
    """Each network in fp32 and fp16; what there is no time for is told, not left out silently."""
    began, findings = time.monotonic(), []
    for network, make in NETWORKS.items():
        bundle = make(folder)
        for precision in ("fp32", "fp16"):
            if time.monotonic() - began > BUDGET_S * 0.85:
                told = f"no time left after {time.monotonic() - began:.0f} s"
                findings.append(
                    Finding(network=network, precision=precision, missing={"all": told})
                )
                continue
            export(bundle, ExportOptions(precision=precision))
            console.print(f"{network} {precision}: exported, {time.monotonic() - began:.0f} s")
            budget = RuntimeOptions(artifact=f"onnx-{precision}")
            proof = verify(bundle, VerifyOptions(max_batch=max(BATCHES)), budget)
            console.print(f"  parity {'passed' if proof.passed else 'FAILED'}")
            findings.append(measured(network, bundle, precision, folder, round_s))
    return findings


def main() -> None:
    """Measure, print the tables, write the file; exits with 1 where CUDA could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--round-s", type=float, default=0.3)
    asked = parser.parse_args()
    console = Console(highlight=False)
    if not torch.cuda.is_available():
        console.print(f"torch {torch.__version__} sees no CUDA device: nothing to check here")
        sys.exit(1)
    with tempfile.TemporaryDirectory() as folder:
        findings = all_of_it(Path(folder), asked.round_s, console)
    for finding in findings:
        console.rule(f"{finding.network} {finding.precision}", align="left")
        if finding.report is not None:
            draw(finding.report, console)
        for name, why in finding.missing.items():
            console.print(f"{name}: NOT MEASURED\n{why}", markup=False)
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(findings)))
    console.print(f"all of it is in {asked.json}", markup=False)
    sys.exit(1 if any("ort@cuda:0" in f.missing for f in findings) else 0)


if __name__ == "__main__":
    main()
