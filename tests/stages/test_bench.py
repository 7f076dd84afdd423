import gc
import time

import numpy as np
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, ServerError, SpecError
from tlexport.options import BenchOptions, PackageOptions, RuntimeOptions
from tlexport.reports import BenchReport
from tlexport.stages.bench import bench
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify
from tlexport.traffic import cells

QUICK = {"rounds": 6, "max_rounds": 6, "round_s": 0.03, "warmup": 1}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(cells, "SETTLE_S", 0.0)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


class Slept:
    """Answers right after a wait: a runtime whose speed is known."""

    log: list = []  # noqa: RUF012

    def __init__(self, home, where, options):
        self.name, self.spec = f"slept@{where}", home.spec
        self._wait_s = float(where)
        self.asked = 0
        self.closed = False

    def __call__(self, inputs):
        self.asked += 1
        Slept.log.append((self.name, inputs["images"].copy(), gc.isenabled()))
        time.sleep(self._wait_s)
        return {"logits": np.zeros((len(inputs["images"]), 4), np.float32)}

    def facts(self):
        return {"wait_s": self._wait_s}

    def counters(self):
        return {
            "requests": self.asked,
            "queue_ms": 2.0 * self.asked,
            "compute_ms": 7.0 * self.asked,
        }

    def close(self):
        self.closed = True


@pytest.fixture
def slept(monkeypatch):
    Slept.log = []
    small_bundles.plug_runtime(monkeypatch, "slept", Slept)
    return Slept


def test_real_runtimes_side_by_side(bundle):
    options = BenchOptions(batches=(1, 4), **QUICK)
    report = bench(bundle, options, RuntimeOptions(threads=1))
    assert [(row.runtime, row.batch) for row in report.rows] == [
        ("eager@cpu", 1),
        ("ort@cpu", 1),
        ("eager@cpu", 4),
        ("ort@cpu", 4),
    ]
    for row in report.rows:
        assert row.requests >= 6
        assert row.errors == 0
        assert row.p50_ms.low <= row.p50_ms.value <= row.p50_ms.high
        assert row.facts["threads"] == 1
        assert row.queue_ms is None
    first, second = report.rows[:2]
    assert (first.speedup.value, first.different) == (1.0, False)
    assert second.speedup.low <= second.speedup.value <= second.speedup.high
    home = Bundle(bundle)
    assert report.digests == {
        "weights": home.manifest.weights_sha256,
        "golden": home.manifest.golden_sha256,
        "onnx-fp32": home.artifact("onnx-fp32").sha256,
    }
    assert report.threads == 1
    assert report.environment.cores >= 1
    assert home.report("bench", BenchReport) == report


def test_known_speeds_are_found(bundle, slept):
    options = BenchOptions(runtimes=("slept@0.004", "slept@0.002"), batches=(2,), **QUICK)
    slow, fast = bench(bundle, options).rows
    assert slow.p50_ms.value >= 4.0
    assert fast.p50_ms.value >= 2.0
    assert slow.items_per_s.value <= 2 / 0.004
    assert 1.3 < fast.speedup.value < 2.7
    assert fast.different


def test_the_same_twice_is_no_difference(bundle, slept):
    options = BenchOptions(runtimes=("slept@0.002", "slept@0.002"), batches=(1,), **QUICK)
    _, again = bench(bundle, options).rows
    assert again.speedup.low <= 1.2
    assert again.speedup.high >= 0.8


def test_concurrency_keeps_so_many_in_flight(bundle, slept):
    options = BenchOptions(runtimes=("slept@0.004",), batches=(1,), concurrencies=(4,), **QUICK)
    report = bench(bundle, options)
    assert report.rows[0].items_per_s.value > 2 / 0.004
    assert report.load == "closed loop, 4 in flight"


def test_no_tail_from_too_few_requests(bundle, slept):
    options = BenchOptions(runtimes=("slept@0.005",), batches=(1,), **QUICK)
    row = bench(bundle, options).rows[0]
    assert 6 <= row.requests < 72
    assert row.p50_ms is not None
    assert row.p95_ms is None
    assert row.p99_ms is None


def test_turns_are_shuffled_by_seed_and_ask_the_same_inputs(bundle, slept):
    options = BenchOptions(
        runtimes=("slept@0.011", "slept@0.012"),
        batches=(5,),
        rounds=8,
        max_rounds=8,
        round_s=0.005,
        warmup=0,
    )

    def turns(options):
        slept.log = []
        bench(bundle, options)
        names = [name for name, _, _ in slept.log]
        assert len(names) == 8 * 2 * 2  # a checked request and a measured one per turn
        return names[::2], [images for _, images, _ in slept.log]

    order, asked = turns(options)
    assert order == turns(options)[0]
    assert order != turns(BenchOptions(**(as_dict(options) | {"seed": 5})))[0]
    assert sorted(order) == sorted([*["slept@0.011"] * 8, *["slept@0.012"] * 8])
    assert all(
        set(order[i : i + 2]) == {"slept@0.011", "slept@0.012"} for i in range(0, len(order), 2)
    )
    golden = Bundle(bundle).golden().inputs["images"]
    for images in asked:
        np.testing.assert_array_equal(images, golden[:5])


def as_dict(options):
    return {name: getattr(options, name) for name in options.__struct_fields__}


def test_different_inputs_cover_the_golden_samples(bundle, slept):
    bench(bundle, BenchOptions(runtimes=("slept@0.001",), batches=(5,), **QUICK))
    golden = Bundle(bundle).golden().inputs["images"]
    seen = {images.tobytes() for _, images, _ in slept.log}
    assert seen == {golden[np.arange(s, s + 5) % 12].tobytes() for s in (0, 5, 10)}


def test_the_servers_own_split_is_of_the_timed_requests(bundle, slept):
    options = BenchOptions(runtimes=("slept@0.001",), batches=(1,), rounds=6, round_s=0.01)
    row = bench(bundle, options).rows[0]
    assert row.queue_ms == pytest.approx(2.0)
    assert row.compute_ms == pytest.approx(7.0)


def test_garbage_is_not_collected_while_the_clock_runs(bundle, slept):
    bench(bundle, BenchOptions(runtimes=("slept@0.001",), batches=(1,), **QUICK))
    enabled = [on for _, _, on in slept.log]
    assert True in enabled  # warm-up and the checked request
    assert enabled.count(False) > enabled.count(True)
    assert gc.isenabled()


def test_errors_are_counted_and_said(bundle, monkeypatch, slept, caplog):
    class Shaky(Slept):
        def __call__(self, inputs):
            answer = super().__call__(inputs)
            if self.asked % 3 == 0 and not gc.isenabled():
                raise ServerError("an answer", got="connection reset", fix="look at its log")
            return answer

    small_bundles.plug_runtime(monkeypatch, "shaky", Shaky)
    row = bench(bundle, BenchOptions(runtimes=("shaky@0.001",), batches=(1,), **QUICK)).rows[0]
    assert row.errors >= 6
    assert row.requests > row.errors
    assert "connection reset" in caplog.text


def test_a_runtime_that_answers_nothing_is_an_error(bundle, monkeypatch, slept):
    class Dies(Slept):
        def __call__(self, inputs):
            if not gc.isenabled():
                raise ServerError("an answer", got="connection refused", fix="start it")
            return super().__call__(inputs)

    small_bundles.plug_runtime(monkeypatch, "dies", Dies)
    with pytest.raises(ServerError, match="connection refused"):
        bench(bundle, BenchOptions(runtimes=("dies@0.001",), batches=(1,), **QUICK))
    assert Bundle(bundle).report("bench", BenchReport) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({}, "got: nothing"),
        ({"logits": np.zeros((1, 4), np.float32)}, r"got: float32 \[1, 4\]"),
        ({"logits": np.zeros((3, 4), np.float64)}, "got: float64"),
        ({"logits": np.zeros((), np.float32)}, r"got: float32 \[\]"),
    ],
)
def test_answers_are_looked_at(bundle, monkeypatch, slept, answer, told):
    class Wrong(Slept):
        def __call__(self, inputs):
            return answer

    small_bundles.plug_runtime(monkeypatch, "wrong", Wrong)
    with pytest.raises(SpecError, match=told):
        bench(bundle, BenchOptions(runtimes=("wrong@0",), batches=(3,), **QUICK))


def test_all_are_closed_even_when_one_will_not_open(bundle, monkeypatch, slept):
    opened = []

    def opener(*args):
        opened.append(Slept(*args))
        return opened[-1]

    small_bundles.plug_runtime(monkeypatch, "kept", opener)
    with pytest.raises(OptionError, match="no runtime called 'tvm'"):
        bench(bundle, BenchOptions(runtimes=("kept@0", "tvm@cpu"), **QUICK))
    assert [runtime.closed for runtime in opened] == [True]


def test_progress_reaches_its_total(bundle, slept):
    told = []
    options = BenchOptions(runtimes=("slept@0", "slept@0.001"), batches=(1, 2), **QUICK)
    bench(bundle, options, progress=lambda what, done, total: told.append((done, total)))
    assert told[-1] == (24, 24)


def test_a_bundle_without_artifact_says_so(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    root = small_bundles.make(tmp_path / "b")
    with pytest.raises(BundleError, match="tlexport export"):
        bench(root, BenchOptions(**QUICK))


def test_fewer_rounds_than_an_interval_needs_are_refused():
    with pytest.raises(OptionError, match="--rounds"):
        BenchOptions(rounds=5)


def test_a_real_server_beside_the_process(bundle, tmp_path):
    assert verify(bundle).passed
    package(bundle, tmp_path / "repository", PackageOptions(instances=1, threads=1))
    with serve(tmp_path / "repository") as serving:
        options = BenchOptions(
            runtimes=("ort@cpu", f"triton@{serving.report.grpc}"), batches=(2,), **QUICK
        )
        _, served = bench(bundle, options, RuntimeOptions(threads=1)).rows
    assert served.errors == 0
    assert served.p50_ms.value > served.compute_ms > 0
    assert served.queue_ms >= 0
    assert served.speedup.high < 1  # the wire costs more than this net computes
    assert served.different
