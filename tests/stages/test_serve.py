from __future__ import annotations

import re
import urllib.request

import numpy as np
import pytest
from serving import bundles, small_models
from serving.processes import no_new_regions

from tlexport.bundle import read_tensors, write_tensors
from tlexport.errors import RepositoryError, ServerError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect
from tlexport.stages import serve as stage
from tlexport.stages.package import package
from tlexport.stages.serve import serve


@pytest.fixture
def none_left():
    with no_new_regions():
        yield


@pytest.fixture
def place(tmp_path):
    package(bundles.make(tmp_path / "b.bundle"), tmp_path / "models")
    return tmp_path / "models"


def test_a_ready_server_has_answered_its_golden_sample(place, none_left):
    small_models.lay(place, "double", small_models.double(), small_models.plain())
    steps = []
    with serve(place, progress=lambda *step: steps.append(step)) as serving:
        report = serving.report
        assert report.server == "embedded"
        assert "needs no Docker" in report.reason
        assert 0 < report.ready_s < 60
        asked = {model.name: (model.version, model.golden_max_abs) for model in report.models}
        assert asked["double"] == ("1", None)
        assert asked["insects"][0] == "1"
        assert asked["insects"][1] < 1e-5
        with urllib.request.urlopen(f"http://{report.http}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        runtime = connect(f"triton@{report.grpc}", None, RuntimeOptions(model="insects"))
        assert np.allclose(
            runtime({"images": bundles.images()})["logits"],
            bundles.answers(bundles.images()),
            atol=1e-6,
        )
        runtime.close()
    assert ("asking a golden sample", 2, 2) in steps
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{report.http}/v2/health/ready", timeout=5)


def test_a_wrong_answer_stops_the_server(place, none_left):
    path = place / "insects/1/golden.safetensors"
    golden = read_tensors(path)
    golden["output:logits"] = golden["output:logits"] + 0.1
    write_tensors(path, golden)
    with pytest.raises(ServerError, match=r"'insects' to answer 'logits'") as caught:
        serve(place)
    assert "a difference of 0.1" in caught.value.got


def test_no_repository(tmp_path):
    with pytest.raises(RepositoryError, match="no such folder"):
        serve(tmp_path / "models")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (np.zeros((1, 0), np.float32), "nothing"),
        (np.zeros((1, 2), np.float32), r"shape \[1, 2\]"),
        (np.array([[1, np.nan, 2]], np.float32), "a difference of nan"),
        (None, "nothing"),
    ],
)
def test_answers_that_are_none(answer, reason):
    golden = np.array([[1, 2, 2]], np.float32)
    answers = {} if answer is None else {"y": answer}
    with pytest.raises(ServerError, match=reason):
        stage._difference("m", "y", answers, golden)


def test_answers_that_are_right():
    golden = np.array([[1000, 2, 2]], np.float32)
    assert stage._difference("m", "y", {"y": golden + 0.5}, golden) == 0.5
    texts = np.array([[b"a"]], dtype=object)
    assert stage._difference("m", "y", {"y": texts}, texts) == 0


def test_a_refused_model_is_told_of_with_the_edit_that_mends_it(tmp_path, none_left):
    config = small_models.config(["xs FP32 3"], ["y FP32 3"])
    small_models.lay(tmp_path / "models", "double", small_models.double(), config)
    with pytest.raises(ServerError, match="unexpected inference input 'xs'") as caught:
        serve(tmp_path / "models")
    assert 'double, tensor-unknown: write name: "x"' in caught.value.fix
    assert f"`tlexport lint {tmp_path / 'models'}`" in caught.value.fix


def test_a_lower_precision_has_its_own_room(place, none_left):
    """Golden answers are the original's; int8 may be off by more than float32, and no more."""
    for share in (0.05, 0.9):
        path = place / "insects/1/golden.safetensors"
        scale = np.abs(bundles.answers(bundles.images())).max()
        moved = bundles.answers(bundles.images()[:4]) + np.float32(share * scale)
        write_tensors(path, {"input:images": bundles.images()[:4], "output:logits": moved})
        origin = place / "insects/1/tlexport.json"
        origin.write_text(re.sub("onnx-[a-z0-9]+", "onnx-int8", origin.read_text()))
        if share < 0.1:
            serve(place).stop()
            continue
        with pytest.raises(ServerError, match="as when it was packaged"):
            serve(place)
