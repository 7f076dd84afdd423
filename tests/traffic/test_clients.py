"""Load from processes of their own, against a real server."""

import os
import pickle
import signal
import threading
from pathlib import Path

import msgspec
import pytest
from serving import bundles
from serving.processes import descendants, gone, until

from tlexport.errors import ServerError, SpecError, TlexportError
from tlexport.measure.scenarios import Plan
from tlexport.options import BenchOptions, PackageOptions, RuntimeOptions
from tlexport.stages.bench import bench
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.traffic import cells, clients
from tlexport.traffic.clients import Order, client


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return bundles.make(tmp_path_factory.mktemp("bundle") / "b.bundle")


@pytest.fixture(scope="module")
def place(home, tmp_path_factory):
    repository = tmp_path_factory.mktemp("served") / "models"
    package(home.root, repository, PackageOptions(instances=1, threads=1))
    return repository


@pytest.fixture(scope="module")
def served(place):
    with serve(place) as serving:
        yield serving.report


@pytest.fixture
def opened(home):
    found = []

    def call(runtime, processes=2, concurrency=4):
        order = Order(
            runtime=runtime,
            bundle=str(home.root),
            options=RuntimeOptions(threads=1, timeout_s=10.0),
            batches=(1, 2),
        )
        before = set(descendants(os.getpid()))
        found.append(client(home, order, processes, concurrency))
        found[-1].pids = sorted(set(descendants(os.getpid())) - before)
        return found[-1]

    yield call
    for each in found:
        each.close()


def test_processes_ask_together_and_what_they_count_is_what_the_server_counts(served, opened):
    asking = opened(f"triton@{served.grpc}")
    assert asking.processes == 2
    asking.check(2)
    asking.warm_up(2, 2, 4)
    before = asking.counters()["requests"]
    load = asking.closed_loop(2, 0.3, 4)
    counted = asking.counters()["requests"] - before
    assert load.errors == 0
    assert 20 < len(load.latencies_s) <= counted
    # beyond those counted: who was through went on until all were, and Triton's own delay
    assert counted <= len(load.latencies_s) * 1.3 + 20
    assert 0 < load.client_s < 2 * 5
    assert 0.3 <= load.busy_s < 5


def test_fewer_in_flight_than_processes_leaves_some_idle(served, opened):
    asking = opened(f"triton@http://{served.http}")
    assert len(asking.closed_loop(1, 0.1, 1).latencies_s) > 5


def test_a_scenario_in_a_process(served, opened):
    asking = opened(f"triton@{served.grpc}", processes=1)
    plan = Plan(scenario="server", seconds=0.3, queries=64, questions=6, rate_per_s=100.0)
    outcome, spent_s = asking.play(1, plan)
    assert outcome.errors == 0
    assert len(outcome.latencies_s) >= 64
    assert spent_s > 0


def test_in_process_runtimes_are_asked_by_this_one(opened):
    asking = opened("ort@cpu")
    assert (asking.processes, asking.pids) == (0, [])
    load = asking.closed_loop(1, 0.05, 2)
    assert len(load.latencies_s) > 2
    assert load.client_s is None
    assert 0 < asking.own_s < 1e-3


def test_what_a_process_raises_is_raised_here(served, opened, home, tmp_path, monkeypatch):
    asking = opened(f"triton@{served.grpc}", processes=1)
    with pytest.raises(TlexportError, match="KeyError"):
        asking.check(77)
    assert len(asking.closed_loop(1, 0.05, 1).latencies_s) > 2  # it lives on


def test_errors_travel_whole():
    error = SpecError("a", got="b", fix="c")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (SpecError, str(error))


def test_a_client_that_is_killed_is_told_and_the_server_serves_on(served, opened):
    """A client that disconnects in the middle of its requests."""
    asking = opened(f"triton@{served.grpc}")
    victim = asking.pids[-1]
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    with pytest.raises(TlexportError, match="client process to live") as caught:
        asking.closed_loop(1, 3.0, 4)
    assert "-9" in caught.value.got
    asking.close()
    until(lambda: all(gone(pid) for pid in asking.pids))
    other = opened(f"triton@{served.grpc}", processes=1)
    assert len(other.closed_loop(1, 0.2, 2).latencies_s) > 5


def test_it_agrees_with_the_servers_own_statistics(home, served, monkeypatch):
    """What the server says it took lies within what was measured; the rest is client and wire."""
    monkeypatch.setattr(cells, "SETTLE_S", 0.0)
    options = BenchOptions(
        runtimes=(f"triton@{served.grpc}",), batches=(1,), rounds=6, max_rounds=6, round_s=0.1
    )
    (row,) = bench(home, options, RuntimeOptions(threads=1)).rows
    spent = row.spent
    assert row.clients == 1
    assert 0 < spent.queue_ms + spent.compute_ms < spent.mean_ms
    assert spent.compute_ms >= row.compute_ms
    parts = spent.client_ms + spent.wire_ms + spent.queue_ms + spent.compute_ms
    # the client's time and the server's may overlap: a tenth, and never less than was measured
    assert spent.mean_ms <= parts * 1.001
    assert parts <= 1.3 * spent.mean_ms


def test_no_process_outlives_its_pipe(served, opened):
    asking = opened(f"triton@{served.grpc}")
    assert len(asking.pids) == 2
    asking.close()
    assert all(gone(pid) for pid in asking.pids)


def test_a_server_killed_under_load_is_counted_and_said(home, place, monkeypatch, caplog):
    monkeypatch.setattr(cells, "SETTLE_S", 0.0)
    options = BenchOptions(
        runtimes=(), batches=(1,), concurrencies=(2,), rounds=6, max_rounds=6, round_s=0.8
    )
    budget = RuntimeOptions(threads=1, timeout_s=5.0)
    with serve(place) as serving:
        address = f"triton@{serving.report.grpc}"
        options = msgspec.structs.replace(options, runtimes=(address,))
        server = [p for p in descendants(os.getpid()) if "tritonserver" in _command(p)]
        assert server
        killer = threading.Timer(0.4, lambda: [os.kill(pid, signal.SIGKILL) for pid in server])
        closed_loop, asked = clients.Processes.closed_loop, []

        def first_kills(*arguments):
            asked.append(arguments)
            if len(asked) == 2:
                killer.start()
            return closed_loop(*arguments)

        monkeypatch.setattr(clients.Processes, "closed_loop", first_kills)
        (row,) = bench(home, options, budget).rows
    assert row.requests > 20  # of the first turn, and of the second until it died
    assert row.errors >= 5
    assert row.first_error
    assert not row.steadiness.stable
    assert "errors: expected" in caplog.text
    with pytest.raises(ServerError):
        bench(home, options, budget)


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""
