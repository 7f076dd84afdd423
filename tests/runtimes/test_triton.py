"""The runtime `triton`, over each protocol, against a real server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from serving import bundles, small_models
from serving.processes import until

from tlexport.errors import OptionError, ServerError, SpecError
from tlexport.options import PackageOptions, RuntimeOptions, ServeOptions
from tlexport.runtimes import connect
from tlexport.serving import choice
from tlexport.stages.package import package

PROTOCOLS = ("grpc", "http", "shm")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.make(tmp_path_factory.mktemp("bundle") / "b.bundle")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "models"
    options = PackageOptions(max_batch=16, instances=2, threads=1, queue_delay_us=0)
    package(bundle, place, options)
    package(bundle, place, options)
    text = small_models.build(
        [("Identity", ["x"], ["y"]), ("Shape", ["x"], ["size"])],
        [("x", small_models.TensorProto.STRING, ["width"])],
        [
            ("y", small_models.TensorProto.STRING, ["width"]),
            ("size", small_models.TensorProto.INT64, [1]),
        ],
    )
    config = small_models.config(["x STRING -1"], ["y STRING -1", "size INT64 1"], max_batch=0)
    small_models.lay(place, "text", text, config)
    server, _ = choice.start("embedded", place, ServeOptions())
    yield server
    server.stop()


@pytest.fixture
def ask(server):
    """Open a runtime: (protocol, bundle, options) -> runtime."""
    opened = []

    def call(protocol="grpc", bundle=None, **options):
        where = {
            "grpc": server.grpc,
            "http": f"http://{server.http}",
            "shm": f"shm://{server.grpc}",
        }[protocol]
        opened.append(connect(f"triton@{where}", bundle, RuntimeOptions(**options)))
        return opened[-1]

    yield call
    for runtime in opened:
        runtime.close()


def regions(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        return list(client.get_system_shared_memory_status().regions)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_in_rows_out_at_any_size(ask, protocol, bundle):
    runtime = ask(protocol, bundle)
    pixels = bundles.images(16)
    for size in (1, 7, 16, 2):
        answer = runtime({"images": pixels[:size]})["logits"]
        assert answer.dtype == np.float32
        assert np.allclose(answer, bundles.answers(pixels[:size]), atol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_from_several_threads_at_once(ask, protocol, bundle):
    runtime = ask(protocol, bundle)
    pixels, barrier = bundles.images(16), threading.Barrier(4)

    def one(thread):
        barrier.wait(10)
        for index in range(20):
            row = (thread * 20 + index) % 16
            answer = runtime({"images": pixels[row : row + 1]})["logits"]
            assert np.allclose(answer, bundles.answers(pixels[row : row + 1]), atol=1e-6)
        return threading.get_ident()

    with ThreadPoolExecutor(4) as pool:
        assert len({future.result() for future in [pool.submit(one, n) for n in range(4)]}) == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_texts_and_outputs_of_unknown_size(ask, protocol):
    runtime = ask(protocol, model="text")
    assert (runtime.spec.inputs[0].dtype, runtime.spec.inputs[0].shape) == ("object", ("x_0",))
    answers = runtime({"x": np.array(["é文", "", "plain"], dtype=object)})
    assert [item.decode() for item in answers["y"]] == ["é文", "", "plain"]
    assert answers["size"].tolist() == [3]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_facts_and_counters(ask, protocol, bundle):
    runtime = ask(protocol, bundle)
    facts = runtime.facts()
    assert facts["server"] == "triton 2.51.0"
    assert (facts["protocol"], facts["model"], facts["version"]) == (protocol, "insects", "2")
    assert (facts["instances"], facts["threads"], facts["max_batch"]) == (2, 1, 16)
    assert facts["artifact_sha256"] == bundle.artifact("onnx-fp32").sha256
    before = runtime.counters()
    for _ in range(3):
        runtime({"images": bundles.images(1)})
    until(lambda: runtime.counters()["requests"] - before["requests"] >= 3)  # it counts afterwards
    after = runtime.counters()
    assert after["requests"] - before["requests"] == 3
    for name in ("queue_ms", "compute_ms", "input_ms", "output_ms"):
        assert after[name] > before[name]


def test_without_a_bundle_the_server_tells_the_spec(ask):
    assert ask(model="insects").spec == bundles.spec()


def test_shared_memory_leaves_nothing_behind(ask, server, bundle):
    runtime = ask("shm", bundle)
    runtime({"images": bundles.images(2)})
    assert len(regions(server)) == 2
    runtime({"images": bundles.images(16)})
    assert len(regions(server)) == 2
    runtime.close()
    assert regions(server) == []
    assert not list(Path("/dev/shm").glob("tlexport-*"))


def test_answers_are_the_callers_own(ask, bundle):
    runtime, pixels = ask("shm", bundle), bundles.images(2)
    first = runtime({"images": pixels[:1]})["logits"]
    kept = first.copy()
    runtime({"images": pixels[1:]})
    assert np.array_equal(first, kept)


def test_a_killed_client_leaves_no_memory(server):
    code = (
        "import os, sys; from serving import bundles\n"
        "from tlexport.runtimes import connect; from tlexport.options import RuntimeOptions\n"
        f"r = connect('triton@shm://{server.grpc}', None, RuntimeOptions(model='insects'))\n"
        "r({'images': bundles.images(2)}); os.kill(os.getpid(), 9)\n"
    )
    tests = str(Path(__file__).parents[1])
    told = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": tests}, check=False)
    assert told.returncode == -9
    assert not list(Path("/dev/shm").glob("tlexport-*"))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.unregister_system_shared_memory()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refusal_is_in_the_servers_words(ask, protocol, bundle):
    runtime = ask(protocol, bundle)
    with pytest.raises(ServerError, match=r"batch-size must be <= 16"):
        runtime({"images": bundles.images(17)})
    with pytest.raises(SpecError, match="'images' as uint8"):
        runtime({"images": bundles.images(1).astype(np.float32)})
    assert runtime({"images": bundles.images(1)})["logits"].shape == (1, 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_models_and_versions_that_are_not_served(ask, protocol):
    with pytest.raises(ServerError, match=r"the model 'birds' in service.*") as caught:
        ask(protocol, model="birds")
    assert "insects" in caught.value.got
    with pytest.raises(ServerError, match=r"version 1|'1'"):
        ask(protocol, model="insects", version="1")


def test_several_models_and_none_named(ask):
    with pytest.raises(OptionError, match="2 models: insects, text"):
        ask()


@pytest.mark.parametrize("scheme", ["", "http://", "shm://"])
def test_nobody_there(scheme):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ServerError, match=f"Triton server that speaks .* at {address}") as caught:
        connect(f"triton@{scheme}{address}", None, RuntimeOptions(timeout_s=5))
    assert "tlexport serve" in caught.value.fix


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_somebody_there_who_never_answers(scheme):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerError):
            connect(f"triton@{scheme}{address}", None, RuntimeOptions(timeout_s=1, model="m"))


@pytest.mark.parametrize("where", ["localhost", "localhost:http", "ftp://localhost:1", ":8001"])
def test_an_address_of_another_form(where):
    with pytest.raises(OptionError, match=r"HOST:PORT"):
        connect(f"triton@{where}", None, RuntimeOptions())


def test_it_needs_no_torch():
    code = "import sys; import tlexport.runtimes.triton; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_started_anew_is_asked_again(ask, server, bundle, protocol):
    runtime = ask(protocol, bundle, model="insects")
    before = runtime({"images": bundles.images(2)})["logits"]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.unregister_system_shared_memory()  # a new server knows no memory of ours
    assert np.array_equal(runtime({"images": bundles.images(2)})["logits"], before)


def test_a_server_that_serves_nothing(tmp_path):
    place = tmp_path / "models"
    small_models.lay(place, "double", small_models.double(), small_models.plain())
    server, _ = choice.start("embedded", place, ServeOptions(control="explicit"))
    try:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            client.unload_model("double")
        with pytest.raises(ServerError, match="a model in service") as caught:
            connect(f"triton@{server.grpc}", None, RuntimeOptions())
        assert "double" in caught.value.got
    finally:
        server.stop()
