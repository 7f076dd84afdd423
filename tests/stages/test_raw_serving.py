"""Raw files through the real server: right, alone and together, and the bad ones told."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import piped
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from serving.processes import until
from tritonclient.utils import InferenceServerException

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.errors import OptionError
from tlexport.options import (
    ExportOptions,
    PackageOptions,
    PredictOptions,
    RuntimeOptions,
    ServeOptions,
    VerifyOptions,
)
from tlexport.serving import config
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.predict import predict
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify

KINDS = ("photos", "texts", "sounds")
MANY = 40


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """All three pipelines on one server: what `serve` reports."""
    place = tmp_path_factory.mktemp("served") / "models"
    for kind in KINDS:
        options = PackageOptions(
            pipeline=True, top=2, max_batch=piped.BATCH, queue_delay_us=2000, threads=1
        )
        package(piped.bundle(kind), place, options)
    with serve(place) as serving:
        yield serving.report


@pytest.fixture(scope="module")
def ask(served):
    """What a client gets: (kind, items) -> labels, probabilities, errors."""
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:

        def call(kind, *items):
            return infer(client, tritonclient.grpc, kind, items)

        yield call


def infer(client, protocol, kind, items):
    raw = protocol.InferInput("raw", [len(items), 1], "BYTES")
    raw.set_data_from_numpy(piped.column(*items))
    answer = client.infer(f"{kind}_pipeline", [raw])
    return tuple(answer.as_numpy(name) for name in ("label", "probability", "error"))


def good(kind):
    return [path.read_bytes() for path in piped.files(kind)]


def bad(kind):
    """Items that the pipeline must refuse, and what it must say."""
    photo, sound = good("photos")[0], good("sounds")[0]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "png")
    return {
        "photos": {
            b"": "no image",
            photo[: len(photo) // 2]: "truncated",
            b"not an image": "no image",
            sound: "no image",
            bomb.getvalue(): "200000000 pixels",
        },
        "texts": {b"caf\xe9": "not UTF-8", photo: "not UTF-8"},
        "sounds": {
            b"": "an empty file",
            b"RIFF": "no audio",
            sound[: len(sound) // 2]: "cut short",
            b"a text": "no audio",
            photo: "no audio",
        },
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["grpc", "http", "shm"])
def test_raw_files_are_answered_as_the_original_answers_them(served, kind, protocol):
    where = {"grpc": "", "http": "http://", "shm": "shm://"}[protocol]
    where += served.http if protocol == "http" else served.grpc
    options = VerifyOptions(candidate=f"triton@{where}", max_batch=piped.BATCH)
    report = verify(piped.bundle(kind), options)
    assert report.passed, report.causes
    found = {(check.check, check.batch): check for check in report.checks}
    asked = min(piped.BATCH, report.samples)
    assert found["pipeline", 1].max_abs < 1e-5
    assert found["pipeline", asked].max_abs < 1e-5
    assert found["pipeline, a bad item", 3].passed
    assert not report.notes


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_item_is_told_and_its_batch_mates_are_answered(ask, kind):
    mates = good(kind)[:2]
    alone = [ask(kind, mate) for mate in mates]
    for item, why in bad(kind).items():
        labels, likely, errors = ask(kind, mates[0], item, mates[1])
        assert errors[1, 0].decode().startswith("expected ")
        for part in ("; got: ", why, "; fix: "):
            assert part in errors[1, 0].decode()
        assert list(labels[1]) == [b"", b""]
        assert not likely[1].any()
        assert list(errors[[0, 2], 0]) == [b"", b""]
        for row, (label, probability, _) in zip((0, 2), alone, strict=True):
            assert list(labels[row]) == list(label[0])
            assert np.allclose(likely[row], probability[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_item_alone_is_refused_in_three_parts(ask, served, kind):
    for item, why in bad(kind).items():
        with pytest.raises(InferenceServerException) as caught:
            ask(kind, item)
        told = caught.value.message()
        assert told.startswith(f"in ensemble '{kind}_pipeline', expected ")
        for part in ("; got: ", why, f"({len(item)} bytes)", "; fix: "):
            assert part in told
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_only_bad_items_are_told_each(ask):
    labels, likely, errors = ask("photos", b"", b"x")
    assert not labels.any()
    assert not likely.any()
    assert all("no image" in error.decode() for error in errors[:, 0])


def test_requests_at_the_same_time_are_read_together_and_answered_each(served, ask):
    """Texts of unlike lengths, a bad one now and then: every answer is its own."""
    texts = [("the cat sat " * (1 + n % 9) + f"on {n} mats").encode() for n in range(MANY)]
    texts[7::10] = [b"\xff" * (n + 1) for n in range(len(texts[7::10]))]
    wanted = [ask("texts", b"a good one", text) for text in texts]
    before = executions(served, "texts_preprocess")

    def one(text):
        with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
            try:
                return infer(client, tritonclient.grpc, "texts", [text])
            except InferenceServerException as error:
                return error.message()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, texts))
    for text, (labels, likely, errors), got in zip(texts, wanted, found, strict=True):
        if text[:1] == b"\xff":
            assert errors[1, 0].decode() in got
            continue
        assert list(got[0][0]) == list(labels[1])
        assert np.allclose(got[1][0], likely[1], atol=1e-5)
    after = executions(served, "texts_preprocess")
    inferences, executed = (now - then for now, then in zip(after, before, strict=True))
    assert inferences >= MANY - len(texts[7::10])
    assert executed < MANY, "several requests were read in one call"


def executions(served, model):
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        stats = client.get_inference_statistics(model, as_json=True)["model_stats"][0]
    return int(stats["inference_count"]), int(stats["execution_count"])


@pytest.mark.parametrize("kind", KINDS)
def test_http_says_the_same(served, ask, kind):
    mates = (good(kind)[0], b"\xff\xfe", good(kind)[1])
    client = tritonclient.http.InferenceServerClient(served.http)
    try:
        found = infer(client, tritonclient.http, kind, mates)
    finally:
        client.close()
    wanted = ask(kind, *mates)
    assert found[0].tolist() == wanted[0].tolist()
    assert np.allclose(found[1], wanted[1], atol=1e-5)
    assert found[2].tolist() == wanted[2].tolist()


CLIENT = """
import numpy as np
import tritonclient.grpc as triton  # or tritonclient.http, at the other port

client = triton.InferenceServerClient("localhost:8001")
files = ["a.jpg", "b.png"]
raw = triton.InferInput("raw", [len(files), 1], "BYTES")
raw.set_data_from_numpy(np.array([[open(file, "rb").read()] for file in files], dtype=object))
answer = client.infer("photos_pipeline", [raw])
told = [answer.as_numpy(name) for name in ("label", "probability", "error")]
for file, label, probability, error in zip(files, *told):
    print(file, error[0].decode() or f"{label[0].decode()} {probability[0]:.3f}")
"""
"""The README's client: nothing of tlexport."""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_client_of_the_readme(served, ask, protocol, tmp_path):
    first, second = good("photos")[:2]
    for name, content in (("a.jpg", first), ("b.png", second), ("c.jpg", b"no photo")):
        (tmp_path / name).write_bytes(content)
    code = CLIENT.replace('"b.png"]', '"c.jpg", "b.png"]')
    code = code.replace("tritonclient.grpc", f"tritonclient.{protocol}")
    code = code.replace("localhost:8001", served.grpc if protocol == "grpc" else served.http)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ""},
    )
    told = ended.stdout.splitlines()
    labels, likely, _ = ask("photos", first, second)
    assert told[0] == f"a.jpg {labels[0, 0].decode()} {likely[0, 0]:.3f}"
    assert told[1].startswith("c.jpg expected the bytes of one image file")
    assert told[2] == f"b.png {labels[1, 0].decode()} {likely[1, 0]:.3f}"


def test_curl_sends_a_text_as_json(served, ask):
    body = {"inputs": [{"name": "raw", "shape": [1, 1], "datatype": "BYTES"}]}
    body["inputs"][0]["data"] = ["the cat sat on 3 mats"]
    told = json.loads(curl(served, "texts", "-d", json.dumps(body)))
    answers = {output["name"]: output["data"] for output in told["outputs"]}
    labels, likely, _ = ask("texts", b"the cat sat on 3 mats")
    assert [label.encode() for label in answers["label"]] == list(labels[0])
    assert np.allclose(answers["probability"], likely[0], atol=1e-5)
    assert answers["error"] == [""]


def test_json_of_bad_items_is_json(served):
    """NaN is no JSON: one bad item would have the whole answer unreadable."""
    body = {"inputs": [{"name": "raw", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]}]}
    text = curl(served, "photos", "-d", json.dumps(body))
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    answers = {output["name"]: output["data"] for output in told["outputs"]}
    assert answers["probability"] == [0.0] * 4
    assert answers["label"] == [""] * 4
    assert all("no image" in error for error in answers["error"])


@pytest.mark.parametrize("kind", ["photos", "sounds"])
def test_curl_sends_a_file_behind_a_line_of_json(served, ask, kind):
    """As the README has it, word for word but for the names."""
    file = piped.files(kind)[0]
    script = readme(kind, str(file), served.http)
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=60)
    answers = {output["name"]: output["data"] for output in json.loads(told.stdout)["outputs"]}
    labels, likely, _ = ask(kind, file.read_bytes())
    assert [label.encode() for label in answers["label"]] == list(labels[0])
    assert np.allclose(answers["probability"], likely[0], atol=1e-5)


def readme(kind, file, http):
    return (
        f"FILE={file}\n"
        "SIZE=$(stat -c %s $FILE)\n"
        'HEAD=\'{"inputs":[{"name":"raw","shape":[1,1],"datatype":"BYTES","parameters":'
        "{\"binary_data_size\":'$((SIZE + 4))'}}]}'\n"
        '{ printf %s "$HEAD"; perl -e \'print pack "V", shift\' $SIZE; cat $FILE; } |\n'
        '  curl -s --data-binary @- -H "Inference-Header-Content-Length: ${#HEAD}" \\\n'
        f"    http://{http}/v2/models/{kind}_pipeline/infer\n"
    )


def curl(served, kind, *arguments):
    url = f"http://{served.http}/v2/models/{kind}_pipeline/infer"
    told = subprocess.run(
        ["curl", "-s", url, *arguments], capture_output=True, check=True, timeout=60
    )
    return told.stdout


def test_predict_sends_files_as_they_are(served, tmp_path):
    """Without the bundle: the tokenizer is the server's."""
    files = piped.files("texts")
    asked = RuntimeOptions(model="texts_pipeline")
    bad_file = tmp_path / "bad.txt"
    bad_file.write_bytes(b"\xff\xfe")
    source = f"triton@{served.grpc}"
    found = predict(source, [*files, bad_file], PredictOptions(top=1), asked).predictions
    wanted = predict(piped.bundle("texts"), files, PredictOptions(top=1)).predictions
    assert [each.labels for each in found[:-1]] == [each.labels for each in wanted]
    for one, other in zip(found, wanted, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert "not UTF-8" in found[-1].error
    (alone,) = predict(source, [bad_file], None, asked).predictions
    assert alone.error == found[-1].error
    tensors = RuntimeOptions(model="photos")
    photo = piped.files("photos")[0]
    (one,) = predict(source, [photo], None, tensors).predictions
    (other,) = predict(source, [photo], None, RuntimeOptions(model="photos_pipeline")).predictions
    assert one.labels[:2] == other.labels
    with pytest.raises(OptionError, match="to be named"):
        predict(source, [photo])


def test_serve_tells_of_pipelines_and_their_steps(served, capsys):
    from rich.console import Console

    from tlexport.cli.serve import draw

    models = {model.name: model for model in served.models}
    for kind in KINDS:
        assert models[f"{kind}_preprocess"].step_of == f"{kind}_pipeline"
        assert models[f"{kind}_postprocess"].step_of == f"{kind}_pipeline"
        assert models[f"{kind}_pipeline"].golden_max_abs < 1e-5
        labels = Bundle(piped.bundle(kind)).spec.labels
        assert models[f"{kind}_pipeline"].golden_label in labels
        assert models[kind].step_of == models[kind].golden_label == ""
    draw(served, Console(width=80))
    shown = capsys.readouterr().out
    assert "photos_pipeline version 1: golden file answered '" in shown
    assert "photos_preprocess version 1: a step of photos_pipeline" in shown
    assert "FILE --model photos_pipeline" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_the_next_version_is_taken_up_under_traffic(tmp_path, capsys):
    """A polling server: no request fails, and the version that answers only ever grows.

    With one pipeline on it, predict needs no name.
    """
    place, options = tmp_path / "models", PackageOptions(pipeline=True, max_batch=2)
    package(piped.bundle("texts"), place, options)
    with (
        serve(place, ServeOptions(control="poll")) as serving,
        tritonclient.grpc.InferenceServerClient(serving.report.grpc) as client,
    ):
        raw = tritonclient.grpc.InferInput("raw", [1, 1], "BYTES")
        raw.set_data_from_numpy(piped.column(b"the cat sat"))
        seen = []

        def once():
            answer = client.infer("texts_pipeline", [raw])
            assert answer.as_numpy("label")[0, 0]
            seen.append(int(answer.get_response().model_version))
            return seen[-1]

        assert once() == 1
        package(piped.bundle("texts"), place, options)
        until(lambda: once() == 2)
        for _ in range(200):
            once()
        files = [str(path) for path in piped.files("texts")]
        with pytest.raises(SystemExit) as ended:
            main(["predict", f"triton@{serving.report.grpc}", *files])
    assert seen == sorted(seen)
    assert ended.value.code == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == files


def test_half_precision_at_both_ends(tmp_path, monkeypatch):
    """The steps write and read float16 where the model's tensors are so."""
    monkeypatch.setattr("tlexport.traffic.race.ROUND_S", 0.01)
    monkeypatch.setattr("tlexport.traffic.race.SETTLE_S", 0.0)
    home = shutil.copytree(piped.bundle("sounds"), tmp_path / "b")
    export(home, ExportOptions(precision="fp16", io_precision="fp16"))
    asked, batches = RuntimeOptions(artifact="onnx-fp16"), VerifyOptions(max_batch=piped.BATCH)
    assert verify(home, batches, asked).passed
    options = PackageOptions(artifact="onnx-fp16", pipeline=True, max_batch=piped.BATCH)
    package(home, tmp_path / "models", options)
    described = config.parse(tmp_path / "models/sounds_preprocess/config.pbtxt")
    assert [block.data_type for block in described.output] == [
        config.pb.TYPE_FP16,
        config.pb.TYPE_BOOL,
        config.pb.TYPE_STRING,
    ]
    with serve(tmp_path / "models") as serving:
        where = VerifyOptions(candidate=f"triton@{serving.report.grpc}", max_batch=piped.BATCH)
        report = verify(home, where, asked)
    assert report.passed
    assert {"pipeline", "pipeline, a bad item"} <= {check.check for check in report.checks}


def test_nothing_of_ours_and_no_torch_is_in_the_server(served):
    """The steps' processes have mapped no library of torch's and no file of the package."""
    stubs = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"_preprocess/1/model.py" in (path.read_bytes() if path.exists() else b"")
    ]
    assert len(stubs) >= len(KINDS)
    for path in stubs:
        mapped = path.with_name("maps").read_text()
        assert "numpy" in mapped
        assert "libtorch" not in mapped
        assert "onnxruntime_pybind" not in mapped
