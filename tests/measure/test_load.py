import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlexport.errors import ServerError
from tlexport.measure.load import PAUSE_S, closed_loop


class Clock:
    """Time that passes only when someone says so."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def refusal():
    return ServerError("an answer", got="connection refused", fix="start the server")


def test_one_worker_asks_until_the_time_is_over():
    clock = Clock()
    waits = iter([0.2, 0.3, 0.4, 0.5])

    def ask():
        clock.now += next(waits)

    load = closed_loop(ask, seconds=0.8, clock=clock, sleep=clock.sleep)
    # the third request began at 0.5 s, in time, and counts although it ended at 0.9 s
    assert load.latencies_s == pytest.approx([0.2, 0.3, 0.4])
    assert load.busy_s == pytest.approx(0.9)
    assert load.errors == 0
    assert load.first_error is None


def test_a_request_longer_than_the_time_is_made_once():
    clock = Clock()

    def ask():
        clock.now += 5.0

    load = closed_loop(ask, seconds=0.5, clock=clock)
    assert load.latencies_s == pytest.approx([5.0])
    assert load.busy_s == pytest.approx(5.0)


def test_errors_are_counted_paused_after_and_not_asked_again():
    clock, asked = Clock(), []

    def ask():
        asked.append(None)
        clock.now += 0.1
        if len(asked) % 2:
            raise refusal()

    load = closed_loop(ask, seconds=0.95, clock=clock, sleep=clock.sleep)
    assert load.errors == 5
    assert len(load.latencies_s) == len(asked) - 5
    assert clock.slept == [PAUSE_S] * 5
    assert isinstance(load.first_error, ServerError)
    assert load.latencies_s == pytest.approx([0.1] * len(load.latencies_s))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_any_other_exception_ends_the_load(concurrency):
    def ask():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        closed_loop(ask, seconds=60, concurrency=concurrency)
    assert not [t for t in threading.enumerate() if t.name == "closed-loop"]


def test_so_many_requests_are_in_flight_and_never_more():
    in_flight, seen, lock = [], [], threading.Lock()

    def ask():
        with lock:
            in_flight.append(None)
            seen.append(len(in_flight))
        time.sleep(0.002)
        with lock:
            in_flight.pop()

    load = closed_loop(ask, seconds=0.1, concurrency=4)
    assert max(seen) == 4
    assert len(seen) >= len(load.latencies_s) >= 8


def test_a_worker_that_is_through_keeps_the_load_up():
    """One worker's request lasts until another has asked far beyond the time."""
    asked, slow_may_end = [], threading.Event()
    first = threading.Lock()

    def ask():
        if first.acquire(blocking=False):
            assert slow_may_end.wait(20)
            return
        asked.append(None)
        if len(asked) >= 500:
            slow_may_end.set()

    load = closed_loop(ask, seconds=0.0, concurrency=2)
    assert len(asked) >= 500
    assert len(load.latencies_s) == 2  # the slow one and the other's first: the rest not counted


def test_latencies_are_those_of_all_workers():
    load = closed_loop(lambda: None, seconds=0.02, concurrency=3)
    assert isinstance(load.latencies_s, np.ndarray)
    assert len(load.latencies_s) >= 3
    assert 0.02 <= load.busy_s < 5


def test_the_rate_is_that_of_the_server_however_short_the_load():
    """Eight wait for one that takes 5 ms each: the first of a worker waits less than all others."""
    only = ThreadPoolExecutor(1)
    for seconds in (0.0, 0.05):
        load = closed_loop(
            lambda: only.submit(time.sleep, 0.005).result(), seconds=seconds, concurrency=8
        )
        assert load.answered >= len(load.latencies_s) >= 8
        assert load.answered / load.busy_s <= 1 / 0.005
    only.shutdown()
