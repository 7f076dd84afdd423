import itertools
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tlexport.errors import MissingDependency, ServerError
from tlexport.measure.scenarios import Outcome, Plan, most_late, play


def plan(scenario, **more):
    values = {"seconds": 0.2, "queries": 64, "questions": 3, "percentile": 0.9}
    return Plan(scenario=scenario, **(values | more))


def refusal():
    return ServerError("an answer", got="connection refused", fix="start the server")


@pytest.fixture(autouse=True)
def no_file_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(Path.cwd().iterdir()) == []


def test_single_stream_asks_one_after_the_other_and_is_valid():
    asked, busy, seen = [], threading.Lock(), []

    def ask(question):
        seen.append(busy.acquire(blocking=False))
        asked.append(question)
        time.sleep(0.001)
        busy.release()

    outcome = play(plan("single-stream", rate_per_s=1000.0), ask)
    assert all(seen)
    assert set(asked) == {0, 1, 2}
    assert outcome.valid
    assert outcome.reasons == ()
    assert outcome.errors == 0
    assert len(outcome.latencies_s) == len(asked) >= 64
    assert outcome.latencies_s.min() >= 0.001
    assert np.all(np.diff(outcome.ended_s) > 0)
    assert np.all(outcome.own_s >= 0)
    assert outcome.own_s.mean() < 0.001


@pytest.mark.parametrize(("queries", "late"), [(458, -1), (459, 0), (661, 0), (662, 1)])
def test_how_many_may_be_late(queries, late):
    assert most_late(queries, 0.99) == late


@pytest.mark.parametrize("more", [0, 1])
def test_loadgen_allows_just_as_many_late_ones(more):
    wish = plan("server", rate_per_s=400.0, percentile=0.5, latency_ms=400.0, seconds=0.0)
    late, calls = most_late(wish.queries, 0.5) + more, itertools.count()

    def ask(question):
        time.sleep(0.8 if next(calls) < late else 0)

    assert play(msgspec.structs.replace(wish, workers=64), ask).valid == (not more)


def test_of_server_the_latency_counts_from_the_scheduled_arrival():
    """One that stalls for 0.3 s makes everyone wait who arrives meanwhile, and it shows."""
    first, alone = threading.Event(), threading.Lock()

    def ask(question):
        with alone:
            if not first.is_set():
                first.set()
                time.sleep(0.3)

    outcome = play(plan("server", rate_per_s=200.0, seconds=0.6, latency_ms=50.0), ask)
    waited = outcome.latencies_s > 0.05
    assert waited.sum() > 20  # some 50 arrive in the first 0.25 s
    assert not outcome.valid
    assert any("constraints" in reason for reason in outcome.reasons)
    # a closed loop would have seen one slow request
    assert len(outcome.latencies_s) > 64


def test_too_few_queries_are_invalid_and_it_says_why():
    outcome = play(
        plan("server", rate_per_s=500.0, percentile=0.99, queries=10, seconds=0.05), lambda n: None
    )
    assert not outcome.valid
    assert "Early stopping not satisfied" in outcome.reasons


def test_offline_keeps_so_many_in_flight_and_times_each_request():
    in_flight, seen, lock = [], [], threading.Lock()

    def ask(question):
        with lock:
            in_flight.append(question)
            seen.append(len(in_flight))
        time.sleep(0.004)
        with lock:
            in_flight.pop()

    outcome = play(plan("offline", rate_per_s=900.0, workers=3, queries=1), ask)
    assert max(seen) == 3
    assert outcome.latencies_s.min() >= 0.004
    assert np.median(outcome.latencies_s) < 0.1  # not since all arrived
    rates = [len(load.latencies_s) / load.busy_s for load in outcome.windows(4)]
    assert max(rates) <= 3 / 0.004 * 1.4


def test_failures_are_counted_not_asked_again_and_invalid():
    asked = []

    def ask(question):
        asked.append(question)
        if len(asked) % 5 == 0:
            raise refusal()
        time.sleep(0.001)

    outcome = play(plan("single-stream", rate_per_s=1000.0), ask)
    assert outcome.errors == len(asked) // 5
    assert len(outcome.latencies_s) == len(asked) - outcome.errors
    assert not outcome.valid
    assert outcome.reasons[0] == f"{outcome.errors} requests failed"
    assert isinstance(outcome.first_error, ServerError)
    assert outcome.latencies_s.min() >= 0.001


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_any_other_exception_is_raised_not_thrown_into_loadgen(scenario):
    def ask(question):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        play(plan(scenario, rate_per_s=400.0), ask)
    assert not [t for t in threading.enumerate() if t.name in ("scenario", "loadgen")]


def test_one_that_fails_always_has_no_latency():
    def ask(question):
        raise refusal()

    outcome = play(plan("server", rate_per_s=300.0), ask)
    assert len(outcome.latencies_s) == 0
    assert outcome.errors >= 64
    (load,) = outcome.windows(5)
    assert load.errors == outcome.errors
    assert load.first_error is outcome.first_error


def test_windows_are_of_equal_length_and_lose_nothing():
    ended = np.array([0.5, 1.0, 1.5, 3.9, 4.0])
    outcome = Outcome(np.full(5, 0.5), ended, np.zeros(5), 2, refusal(), True, ())
    loads = outcome.windows(4)
    assert [load.busy_s for load in loads] == [1.0] * 4
    assert [len(load.latencies_s) for load in loads] == [1, 2, 0, 2]
    assert [load.errors for load in loads] == [0, 0, 0, 2]


def test_without_loadgen_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingDependency, match=r"tlexport\[bench\]"):
        play(plan("server"), lambda n: None)
