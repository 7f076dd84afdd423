"""The embedded server's life, from start to whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from serving import bundles, small_models
from serving.processes import descendants, gone, no_new_regions, regions, until

from tlexport.errors import ServerError
from tlexport.options import PackageOptions, ServeOptions
from tlexport.serving import choice, embedded
from tlexport.serving import server as server_module
from tlexport.stages.package import package

PARENT = """
import sys, time
from pathlib import Path
from tlexport.options import ServeOptions
from tlexport.serving import choice
server, _ = choice.start("embedded", Path({place!r}), ServeOptions())
print(server.pid, server.http, flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    repository = tmp_path_factory.mktemp("one") / "models"
    small_models.lay(repository, "double", small_models.double(), small_models.plain())
    return repository


@pytest.fixture
def start():
    started = []

    def call(place, **options):
        server, _ = choice.start("embedded", place, ServeOptions(**options))
        started.append(server)
        return server

    yield call
    for server in started:
        server.stop()


def double(address, value=1.0):
    array = np.full((1, 3), value, np.float32)
    entry = grpc.InferInput("x", array.shape, "FP32")
    entry.set_data_from_numpy(array)
    with grpc.InferenceServerClient(address) as client:
        return client.infer("double", [entry]).as_numpy("y")


@pytest.fixture
def none_left():
    with no_new_regions():
        yield


def test_two_servers_live_side_by_side_and_stop_without_a_trace(place, none_left, start):
    first, second = start(place), start(place)
    assert len({first.http, second.http, first.grpc, second.grpc}) == 4
    for server in (first, second):
        assert double(server.grpc).tolist() == [[2, 2, 2]]
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
            assert b"nv_inference_request_success" in answer.read()
    processes = descendants(first.pid) + descendants(second.pid)
    assert len(processes) >= 4
    first.stop()
    assert double(second.grpc).tolist() == [[2, 2, 2]]
    second.stop()
    second.stop()
    assert all(gone(pid) for pid in processes)
    assert not first.log.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_whatever_ends_the_parent(place, number):
    code = PARENT.format(place=str(place))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as parent:
        supervisor, _http = parent.stdout.readline().split()
        processes = [int(supervisor), *descendants(int(supervisor))]
        assert len(processes) >= 3
        assert regions(parent.pid)
        os.killpg(parent.pid, number)
        parent.wait(20)
    until(lambda: all(gone(pid) for pid in processes), 20)
    assert not regions(parent.pid)


def test_a_killed_supervisor_takes_the_server_along(place, none_left, start):
    server = start(place)
    processes = descendants(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in processes), 20)
    with pytest.raises(ServerError, match="to keep running"):
        server.wait()
    server.stop()


def test_a_server_that_dies_by_itself_is_told_of(place, start):
    server = start(place)
    os.kill(descendants(server.pid)[0], signal.SIGKILL)
    with pytest.raises(ServerError, match=r"code 137") as caught:
        server.wait()
    assert str(server.log) in str(caught.value)
    assert server.log.is_file()


def test_left_regions_of_the_dead_are_swept(place, start):
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    left = Path("/dev/shm") / f"tlexport_{dead.pid}_1_left"
    left.write_bytes(b"x")
    start(place)
    assert not left.exists()


def test_a_port_asked_for_and_taken(place, start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127.0.0.1:{port} for http") as caught:
            start(place, http_port=port)
    assert "--http-port" in caught.value.fix


def test_a_free_port_taken_in_between_is_chosen_anew(place, start, monkeypatch):
    real, asked = choice.choose_ports, []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def once_taken(options):
            ports = real(options)
            asked.append(ports)
            if len(asked) == 1:
                return server_module.Ports(
                    host=ports.host,
                    http=ports.http,
                    grpc=taken.getsockname()[1],
                    metrics=ports.metrics,
                )
            return ports

        monkeypatch.setattr(choice, "choose_ports", once_taken)
        server = start(place)
    assert len(asked) == 2
    assert double(server.grpc).tolist() == [[2, 2, 2]]


def test_an_address_that_is_not_ours(place, start):
    with pytest.raises(ServerError, match="--host"):
        start(place, host="203.0.113.7")


def test_paths_with_spaces_and_shell_characters(place, start, tmp_path, monkeypatch):
    odd = tmp_path / "a b; touch $(oops)"
    odd.mkdir()
    small_models.lay(odd / "my models", "double", small_models.double(), small_models.plain())
    runtime = embedded.runtime_folder()
    (odd / "cache").mkdir()
    (odd / "cache" / runtime.root.name).symlink_to(runtime.root)
    monkeypatch.setenv("TLEXPORT_CACHE", str(odd / "cache"))
    server = start(odd / "my models")
    assert double(server.grpc).tolist() == [[2, 2, 2]]


def test_a_model_that_is_refused_is_told_with_a_fix(none_left, start, tmp_path):
    place = tmp_path / "models"
    small_models.lay(place, "good", small_models.double(), small_models.plain())
    small_models.lay(place, "stiff", small_models.double((1, 3)), small_models.plain())
    small_models.lay(place, "future", small_models.double(ir_version=99), small_models.plain())
    with pytest.raises(ServerError) as caught:
        start(place)
    text = str(caught.value)
    assert "stiff: Internal: InvalidArgument: model 'stiff', tensor 'x': for the model to" in text
    assert "future: Internal: InternalError: onnx runtime error" in text
    assert "Unsupported model IR version: 99" in text
    assert "\\n" not in text
    assert "tlexport export" in caught.value.fix


def test_not_ready_in_time(place, start):
    with pytest.raises(ServerError, match=r"(?s)ready within 0.05 s.*log: "):
        start(place, timeout_s=0.05)


def test_packaged_models_stand_the_strict_server(start, tmp_path):
    """What `package` writes needs no completion: with and without batching, and with a folder."""
    place = tmp_path / "models"
    bundle = bundles.make(tmp_path / "b.bundle")
    package(bundle, place)
    package(bundle, place, PackageOptions(name="unbatched", max_batch=0))
    package(bundles.make(tmp_path / "x.bundle", external=True), place, PackageOptions(name="big"))
    server = start(place)
    assert "--disable-auto-complete-config" in server._launch.command
    with grpc.InferenceServerClient(server.grpc) as client:
        assert client.get_model_config("unbatched").config.max_batch_size == 0
        array = bundles.images(3)
        entry = grpc.InferInput("images", array.shape, "UINT8")
        entry.set_data_from_numpy(array)
        for model in ("insects", "unbatched", "big"):
            answer = client.infer(model, [entry]).as_numpy("logits")
            assert np.allclose(answer, bundles.answers(array), atol=1e-6)
        config = client.get_model_config("insects").config
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 8]
        statistics = client.get_inference_statistics("insects").model_stats[0]
        assert statistics.inference_count == 1 + 8 + 3  # the two warm-ups, and one request


def test_a_polling_server_takes_new_versions_without_a_failed_request(start, tmp_path):
    place = tmp_path / "models"
    package(bundles.make(tmp_path / "0.bundle"), place)
    server = start(place, control="poll")
    seen, errors, asked, stop = set(), [], [0], threading.Event()

    def ask_on():
        with grpc.InferenceServerClient(server.grpc) as client:
            array = bundles.images(1)
            entry = grpc.InferInput("images", array.shape, "UINT8")
            entry.set_data_from_numpy(array)
            while not stop.is_set():
                try:
                    result = client.infer("insects", [entry])
                    seen.add(result.get_response().model_version)
                    asked[0] += 1
                except Exception as error:
                    errors.append(error)
                time.sleep(0.002)

    threads = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in (2, 3):
            package(bundles.make(tmp_path / f"{number}.bundle", seed=number), place)
            until(lambda n=number: str(n) in seen, 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert asked[0] > 100
    assert {"1", "2", "3"} <= seen
    assert "failed" not in server.text().lower().replace("failed to get cpu", "")


@pytest.mark.parametrize("host", ["localhost", socket.gethostname(), "::1", "::", "0.0.0.0"])
def test_hosts_by_name_and_of_both_families(place, start, host):
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    server = start(place, host=host)
    assert double(server.grpc).tolist() == [[2, 2, 2]]
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("host", ["", "no.such.host.invalid", "x" * 300])
def test_hosts_that_are_none(place, start, host):
    with pytest.raises(ServerError, match="to listen on") as caught:
        start(place, host=host)
    assert "--host" in caught.value.fix


def test_a_supervisor_killed_while_a_model_loads_leaves_no_stub(place, none_left):
    options = ServeOptions()
    server = embedded.start(place, options, server_module.choose_ports(options))
    try:
        until(lambda: any(b"python_backend_stub" in told for told in commands(server.pid)))
        processes = descendants(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="killed by signal 9") as caught:
            server.await_ready(20)
        assert "start it again" in caught.value.fix
    finally:
        server.stop()
    until(lambda: all(gone(pid) for pid in processes), 5)


def commands(pid):
    return [Path(f"/proc/{child}/cmdline").read_bytes() for child in descendants(pid)]


def test_what_a_killed_pair_left_is_ended_by_the_next_server(place):
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from tlexport.options import ServeOptions\n"
        "from tlexport.serving import embedded, server\n"
        "options = ServeOptions()\n"
        f"started = embedded.start(Path({str(place)!r}), options, server.choose_ports(options))\n"
        "print(started.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        supervisor = int(parent.stdout.readline())
        until(lambda: any(b"python_backend_stub" in told for told in commands(supervisor)))
        processes = descendants(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        parent.kill()
    embedded._sweep_regions()
    until(lambda: all(gone(pid) for pid in processes), 5)
    assert not regions(parent.pid)


def test_it_stops_at_once_though_a_fork_holds_its_pipe(place, start):
    server = start(place)
    held = os.dup(server._process.stdin.fileno())
    began = time.monotonic()
    server.stop()
    os.close(held)
    assert time.monotonic() - began < 10


def test_another_servers_answer_at_its_port_is_not_its_own(place, start, monkeypatch):
    first = start(place)
    taken = first.ports
    real = choice.choose_ports

    def same_http(options):
        ports = real(options)
        return server_module.Ports(
            host=ports.host, http=taken.http, grpc=ports.grpc, metrics=ports.metrics
        )

    monkeypatch.setattr(choice, "choose_ports", same_http)
    with pytest.raises(server_module.PortTaken, match="already in use"):
        start(place)
    assert double(first.grpc).tolist() == [[2, 2, 2]]
