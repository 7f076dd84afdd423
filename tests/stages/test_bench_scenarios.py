"""Scenarios, sweeps and the search for the highest rate, on runtimes of known speed."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import small_bundles

from tlexport.errors import OptionError, ServerError
from tlexport.measure import stats
from tlexport.options import BenchOptions, RuntimeOptions, read_slo
from tlexport.stages.bench import bench
from tlexport.traffic import cells

QUICK = {"rounds": 6, "max_rounds": 6, "round_s": 0.04, "warmup": 1}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(cells, "SETTLE_S", 0.0)
    monkeypatch.setattr(cells, "ESTIMATE_S", 0.05)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    small_bundles.plug_runtime(monkeypatch, "one", OneAtATime)
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


class OneAtATime:
    """Answers one request after the other, first come first served, each after so many seconds."""

    def __init__(self, home, where, options):
        self.name, self.spec = f"one@{where}", home.spec
        self._wait_s, self._only = float(where), ThreadPoolExecutor(1)

    def __call__(self, inputs):
        self._only.submit(time.sleep, self._wait_s).result()
        return {"logits": np.zeros((len(inputs["images"]), 4), np.float32)}

    def facts(self):
        return {}

    def counters(self):
        return {}

    def close(self):
        self._only.shutdown()


def test_single_stream_with_its_verdict(bundle):
    options = BenchOptions(
        runtimes=("one@0.004", "one@0.002"), batches=(2,), scenario="single-stream", **QUICK
    )
    report = bench(bundle, options)
    slow, fast = report.rows
    assert report.load == "LoadGen single-stream, one after the other"
    for row, wait in ((slow, 4.0), (fast, 2.0)):
        assert row.verdict.valid
        assert row.p50_ms.value >= wait
        assert row.requests >= 64
        assert row.items_per_s.value <= 2 / wait * 1e3
    assert fast.p50_ms.value < slow.p50_ms.value
    assert fast.speedup.low <= fast.speedup.value <= fast.speedup.high


def test_offline_in_process(bundle):
    options = BenchOptions(batches=(4,), scenario="offline", concurrencies=(1, 2), **QUICK)
    rows = bench(bundle, options, RuntimeOptions(threads=1)).rows
    assert [(row.runtime, row.concurrency) for row in rows] == [
        ("eager@cpu", 1),
        ("ort@cpu", 1),
        ("eager@cpu", 2),
        ("ort@cpu", 2),
    ]
    for row in rows:
        assert row.verdict is not None
        assert row.requests > 6
        assert row.errors == 0


def test_server_at_given_rates_sees_the_queue(bundle):
    options = BenchOptions(
        runtimes=("one@0.004",),
        batches=(1,),
        scenario="server",
        rates=(50.0, 1000.0),
        slo="p90=60ms",
        **QUICK,
    )
    calm, flooded = bench(bundle, options).rows
    assert (calm.rate_per_s, flooded.rate_per_s) == (50.0, 1000.0)
    assert calm.p50_ms.value < flooded.p50_ms.value
    assert flooded.items_per_s.value < 260
    assert flooded.p90_ms.value > 30  # four requests arrive while one is answered
    assert not flooded.verdict.valid
    assert flooded.verdict.reasons


def test_speed_of_server_is_of_the_medians(bundle):
    options = BenchOptions(
        runtimes=("one@0.008", "one@0.002"),
        batches=(1,),
        scenario="server",
        rates=(40.0,),
        slo="p50=100ms",
        **QUICK,
    )
    slow, fast = bench(bundle, options).rows
    assert fast.speedup.value == pytest.approx(slow.p50_ms.value / fast.p50_ms.value, rel=0.2)
    assert fast.speedup.value > 1


def test_the_highest_rate_is_found(bundle):
    options = BenchOptions(
        runtimes=("one@0.005",),
        batches=(1,),
        scenario="server",
        find_max_rate=True,
        slo="p50=300ms",
        **QUICK,
    )
    (row,) = bench(bundle, options).rows
    kept = [trial for trial in row.searched if trial.kept]
    assert kept
    assert row.rate_per_s == max(trial.rate_per_s for trial in kept)
    assert 5 < row.rate_per_s <= 1.12 / 0.005
    assert all(trial.rate_per_s > row.rate_per_s for trial in row.searched if not trial.kept)
    assert row.verdict.valid
    assert row.p50_ms.value <= 300


def test_no_rate_keeps_what_cannot_be_kept(bundle):
    options = BenchOptions(
        runtimes=("one@0.001",),
        batches=(1,),
        scenario="server",
        find_max_rate=True,
        slo="p50=0.5ms",
        **QUICK,
    )
    (row,) = bench(bundle, options).rows
    assert not any(trial.kept for trial in row.searched)
    assert row.rate_per_s == min(trial.rate_per_s for trial in row.searched)
    assert not row.verdict.valid


def test_a_rate_is_left_once_more_are_late_than_all_of_its_run_may_have(bundle):
    options = BenchOptions(
        runtimes=("one@0.002",),
        batches=(1,),
        scenario="server",
        find_max_rate=True,
        slo="p99=1ms",
        **QUICK,
    )
    (row,) = bench(bundle, options).rows
    assert row.searched
    for trial in row.searched:
        assert not trial.kept
        assert re.fullmatch(r"\d+ of the first 100 were late .* of 665, 1 may be", *trial.reasons)
    assert row.verdict.reasons == row.searched[-1].reasons


def test_more_rounds_until_it_is_stable_and_no_more_than_allowed(bundle, monkeypatch):
    options = BenchOptions(
        runtimes=("one@0.001",), batches=(1,), **QUICK | {"max_rounds": 9, "round_s": 0.01}
    )
    monkeypatch.setattr(stats, "BAND", -1.0)
    report = bench(bundle, options)
    assert report.rounds == 9
    assert [row.runtime for row in report.unstable] == ["one@0.001"]
    monkeypatch.setattr(stats, "BAND", 1e12)
    report = bench(bundle, options)
    assert report.rounds == 6
    assert report.unstable == ()


def test_a_sweep_over_concurrency(bundle):
    options = BenchOptions(runtimes=("one@0.002",), batches=(1, 2), concurrencies=(1, 4), **QUICK)
    report = bench(bundle, options)
    rows = {(row.batch, row.concurrency): row for row in report.rows}
    assert sorted(rows) == [(1, 1), (1, 4), (2, 1), (2, 4)]
    # one at a time: four in flight wait four times as long, and no more is answered
    assert rows[1, 4].p50_ms.value > 1.5 * rows[1, 1].p50_ms.value
    assert all(row.items_per_s.value < row.batch / 0.002 for row in report.rows)
    assert report.load == "closed loop, 1, 4 in flight"


def test_where_the_time_goes_adds_up(bundle):
    row = bench(bundle, BenchOptions(runtimes=("one@0.002",), batches=(1,), **QUICK)).rows[0]
    spent = row.spent
    parts = spent.client_ms + spent.wire_ms + spent.queue_ms + spent.compute_ms
    assert parts == pytest.approx(spent.mean_ms)
    assert row.overhead == pytest.approx(spent.client_ms / spent.mean_ms)
    assert 0 < row.overhead < 0.05
    assert len(row.quantiles_ms) == 51
    assert list(row.quantiles_ms) == sorted(row.quantiles_ms)


def test_one_that_refuses_everything_in_a_scenario_is_an_error(bundle, monkeypatch):
    class Refuses(OneAtATime):
        asked = 0

        def __call__(self, inputs):
            self.asked += 1
            if self.asked > 2:
                raise ServerError("an answer", got="connection refused", fix="start it")
            return super().__call__(inputs)

    small_bundles.plug_runtime(monkeypatch, "refuses", Refuses)
    options = BenchOptions(
        runtimes=("refuses@0.001",), batches=(1,), scenario="server", rates=(200.0,), **QUICK
    )
    with pytest.raises(ServerError, match="connection refused"):
        bench(bundle, options)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scenario": "server"}, "--rate or --find-max-rate"),
        ({"rates": (5.0,)}, "--scenario server alone"),
        ({"find_max_rate": True}, "with --scenario server"),
        ({"scenario": "server", "rates": (5.0,), "find_max_rate": True}, "or --rate"),
        ({"scenario": "single-stream", "concurrencies": (2,)}, "no --concurrency"),
        ({"scenario": "flood"}, "--scenario"),
        ({"rates": (0.0,), "scenario": "server"}, "--rates"),
        ({"slo": "p99"}, "p99=20ms"),
        ({"slo": "p99=0ms"}, "p99=20ms"),
        ({"slo": "p10=5ms"}, "p50 to"),
        ({"slo": "20ms"}, "p99=20ms"),
        ({"rounds": 10, "max_rounds": 7}, "--max-rounds"),
        ({"clients": -1}, "--clients"),
    ],
)
def test_bad_requests(changes, told):
    with pytest.raises(OptionError, match=told):
        BenchOptions(**changes)


@pytest.mark.parametrize(
    ("text", "percentile", "latency_ms"),
    [("p99=20ms", 0.99, 20.0), ("p99.9=1.5s", 0.999, 1500.0), ("p50 = 800us", 0.5, 0.8)],
)
def test_a_promise_is_read(text, percentile, latency_ms):
    slo = read_slo(text)
    assert slo.percentile == pytest.approx(percentile)
    assert slo.latency_ms == pytest.approx(latency_ms)
    assert read_slo(str(slo)) == slo


@pytest.mark.parametrize(
    ("rates", "medians", "stable"),
    [
        ([100.0, 1.0, 100.0, 105.0, 109.0], [5.0, 9.0, 5.0, 5.1, 5.4], True),
        ([100.0, 105.0, 111.0], [5.0, 5.0, 5.0], False),
        ([100.0, 100.0, 100.0], [5.0, 5.0, 5.6], False),
        ([100.0, 100.0, 100.0], None, True),
        ([100.0, 100.0], [5.0, 5.0], False),
        ([100.0, 0.0, 100.0], [5.0, 5.0, 5.0], False),
    ],
)
def test_stable_is_the_last_three_within_ten_percent(rates, medians, stable):
    found = stats.steadiness(rates, medians)
    assert found.stable is stable
    assert msgspec.json.encode(found)
