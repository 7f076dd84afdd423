"""The search for settings: what a load tells, what is kept, and the real server under it."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from serving import bundles

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.errors import BundleError, OptionError, ParityError, ServerError
from tlexport.measure.load import Load, closed_loop
from tlexport.options import PackageOptions, RuntimeOptions, Slo, TuneOptions
from tlexport.reports import LoadPoint, TunedSettings, TuneReport, TuneTrial
from tlexport.runtimes import connect
from tlexport.serving import config
from tlexport.stages import tune as stage
from tlexport.stages._space import Search, space
from tlexport.stages.lint import lint
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.tune import tune
from tlexport.traffic.ladder import Rungs, climb, score

QUICK = {"window_s": 0.05, "concurrency": 2, "rounds": 6, "windows": 3, "slo": "p90=2s"}
BRIEF = "--concurrency 1 --window-s 0.05 --windows 3 --rounds 6"
ONE = TunedSettings(instances=1, threads=1, max_batch=1)
PROMISE = Slo(percentile=0.9, latency_ms=20)


def test_the_space_holds_each_setting_once_and_never_more_threads_than_cores():
    for cores in (1, 2, 6):
        found = space(cores, 8)
        assert len(found) == len(set(found))
        assert all(each.instances * each.threads <= cores for each in found)
        assert all(size <= each.max_batch for each in found for size in each.preferred)
        assert {each.max_batch for each in found} == {1, 2, 4, 8}
        assert not [each for each in found if each.max_batch == 1 and each.queue_delay_us]
    assert {each.max_batch for each in space(2, 0)} == {0}


def loading(ask):
    return lambda seconds, concurrency: closed_loop(ask, seconds=seconds, concurrency=concurrency)


class Server:
    """Answers after a while, `slots` requests at a time, first come first served."""

    def __init__(self, seconds: float, slots: int) -> None:
        self._seconds, self._pool = seconds, ThreadPoolExecutor(slots)

    def __call__(self, seconds: float, concurrency: int) -> Load:
        return closed_loop(self._ask, seconds=seconds, concurrency=concurrency)

    def _ask(self) -> None:
        self._pool.submit(time.sleep, self._seconds).result()


def rungs(limit_ms: float, concurrency: int = 8) -> Rungs:
    promise = Slo(percentile=0.9, latency_ms=limit_ms)
    return Rungs(slo=promise, concurrency=concurrency, window_s=0.1, windows=6)


def test_load_is_raised_until_the_promise_breaks():
    found = climb(ONE, rungs(limit_ms=30), Server(0.01, slots=1), None)
    assert [point.concurrency for point in found.points][:2] == [1, 2]
    assert found.best is not None
    assert found.best.quantile_ms <= 30
    assert found.points[-1].concurrency < 8  # four wait 40 ms, or two brought nothing more


def test_load_is_raised_as_long_as_it_brings_more():
    found = climb(ONE, rungs(limit_ms=1000, concurrency=64), Server(0.01, slots=4), None)
    assert found.best.concurrency >= 4
    assert found.stopped == "no more throughput"
    assert found.best.items_per_s > 3 * found.points[0].items_per_s


def test_a_setting_that_is_far_behind_is_given_up():
    best = climb(ONE, rungs(limit_ms=1000), Server(0.005, slots=8), None)
    found = climb(ONE, rungs(limit_ms=1000), Server(0.03, slots=8), best)
    assert found.stopped == "far behind the best"
    assert len(found.points) == 2


def test_a_promise_that_nothing_holds_has_no_best_and_a_score_below_zero():
    near, far = (climb(ONE, rungs(1), Server(seconds, 1), None) for seconds in (0.004, 0.04))
    assert near.best is far.best is None
    assert score(far, PROMISE) < score(near, PROMISE) < 0


def test_failures_do_not_hold_and_a_dead_server_is_told():
    calls = iter(range(10**9))

    def now_and_then() -> None:
        time.sleep(0.002)
        if next(calls) % 5 == 4:
            raise ServerError("an answer", got="none", fix="ask again")

    found = climb(ONE, rungs(1000), loading(now_and_then), None)
    assert found.best is None
    assert "requests failed" in found.stopped

    def never() -> None:
        raise ServerError("an answer", got="connection refused", fix="start it")

    with pytest.raises(ServerError, match="connection refused"):
        climb(ONE, rungs(1000), loading(never), None)


def trial(settings: TunedSettings, items_per_s: float) -> TuneTrial:
    point = LoadPoint(
        concurrency=1,
        requests=100,
        errors=0,
        items_per_s=items_per_s,
        p50_ms=1.0,
        quantile_ms=1.0,
        sure=True,
        stable=True,
    )
    return TuneTrial(settings=settings, points=(point,), stopped="", best=point)


def play(search: Search, most: int, value=lambda settings: float(settings.max_batch)) -> list:
    asked = []
    for drawn, settings in search.next():
        if len(asked) == most:
            search.drop(drawn)
            break
        asked.append(settings)
        result = trial(settings, value(settings))
        search.tell(drawn, result, score(result, PROMISE))
    return asked


@pytest.mark.parametrize("sampled", [False, True])
def test_everything_is_tried_once_the_default_first_over_any_number_of_runs(tmp_path, sampled):
    everything = space(2, 4)
    asked = []
    while True:
        search = Search(tmp_path / "j", everything, sampled, seed=1)
        assert len(search.tried()) == len(asked)
        more = play(search, 9)
        asked += more
        if not more:
            break
    assert asked[0] == everything[0]
    assert sorted(asked) == sorted(everything)


def test_the_sampler_finds_the_better_half_sooner(tmp_path):
    everything = space(4, 16)

    def value(settings: TunedSettings) -> float:
        return 100.0 * settings.instances + settings.max_batch - settings.queue_delay_us / 1e3

    asked = play(Search(tmp_path / "j", everything, True, seed=0), 40, value)
    assert len(set(asked)) == 40
    late = [each.instances for each in asked[20:]]
    assert sum(late) / len(late) > sum(e.instances for e in everything) / len(everything)


def test_a_trial_that_was_killed_is_made_again(tmp_path):
    everything = space(1, 2)
    search = Search(tmp_path / "j", everything, False, seed=0)
    _, settings = next(search.next())  # and then the lights go out
    del search
    again = Search(tmp_path / "j", everything, False, seed=0)
    assert not again.tried()
    assert next(again.next())[1] == settings


def test_what_is_no_journal_is_told(tmp_path):
    (tmp_path / "j").write_text("nonsense\n")
    with pytest.raises(BundleError, match="--force"):
        Search(tmp_path / "j", space(1, 1), False, 0)


@pytest.fixture
def run_line(capsys):
    """Run a command line that must succeed; its stdout."""

    def call(line: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(line.split())
        assert caught.value.code == 0
        return str(capsys.readouterr().out)

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return bundles.make(tmp_path_factory.mktemp("tune") / "b.bundle").root


@pytest.fixture
def bundle(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "b.bundle")


@pytest.fixture(scope="module")
def tuned(made, tmp_path_factory) -> tuple[Path, TuneReport]:
    place = shutil.copytree(made, tmp_path_factory.mktemp("tuned") / "b.bundle")
    return place, tune(place, TuneOptions(trials=4, **QUICK))


def test_settings_are_tried_on_a_real_server(tuned):
    place, report = tuned
    assert len(report.trials) == 4
    assert report.trials[0] == report.default
    assert report.default.settings.max_batch == PackageOptions().max_batch
    assert report.best == max(report.trials, key=lambda each: each.best.items_per_s)
    assert all(point.requests > 0 for each in report.trials for point in each.points)
    assert not any(point.errors for each in report.trials for point in each.points)
    assert (report.gain is None) == (report.best == report.default)
    assert report.stopped == "4 settings tried (--trials)"
    assert Bundle(place).report("tune", TuneReport) == report
    page = Path(report.page).read_text()
    assert page.count("<polyline") == 4
    assert not re.search(r"https?://", page)


def test_the_configuration_is_what_package_writes_with_those_settings(tuned, tmp_path):
    place, report = tuned
    settings = report.best.settings
    options = PackageOptions(
        instances=settings.instances,
        threads=settings.threads,
        max_batch=settings.max_batch,
        queue_delay_us=settings.queue_delay_us,
        preferred_batches=settings.preferred,
    )
    package(place, tmp_path / "models", options)
    written = tmp_path / "models" / "insects" / "config.pbtxt"
    assert written.read_text() == Path(report.config).read_text()


def test_the_same_command_goes_on(tuned, monkeypatch):
    place, report = tuned
    climbed = []
    real = stage.climb
    monkeypatch.setattr(
        stage, "climb", lambda settings, *rest: climbed.append(settings) or real(settings, *rest)
    )
    more = tune(place, TuneOptions(trials=5, **QUICK))
    assert more.resumed == 4
    assert len(more.trials) == 5
    assert climbed == [more.trials[-1].settings]
    assert more.trials[:4] == report.trials
    other = tune(place, TuneOptions(trials=1, **QUICK | {"slo": "p50=1s"}))
    assert other.resumed == 0


def test_a_promise_that_cannot_be_held_is_told(bundle, run_line):
    line = f"tune {bundle} --slo p99=1us --trials 1 {BRIEF}"
    assert "no setting holds p99=0.001ms" in run_line(line)


def test_the_command_line_tells_the_best_and_how_to_package_it(bundle, run_line):
    line = f"tune {bundle} --slo p50=2s --trials 2 {BRIEF}"
    told = run_line(f"{line} --search optuna")
    assert "2 of " in told
    assert "next: " in told
    assert "tlexport package BUNDLE" in told
    again = run_line(f"{line} --search optuna --json")
    assert msgspec.json.decode(again, type=TuneReport).resumed == 2
    forced = run_line(f"{line} --search optuna --json --force")
    assert msgspec.json.decode(forced, type=TuneReport).resumed == 0


def test_preferred_sizes_reach_the_server(bundle, tmp_path):
    options = PackageOptions(max_batch=4, queue_delay_us=500, preferred_batches=(2, 4))
    package(bundle, tmp_path / "models", options)
    found = config.parse(tmp_path / "models" / "insects" / "config.pbtxt")
    assert list(found.dynamic_batching.preferred_batch_size) == [2, 4]
    assert not lint(tmp_path / "models").findings
    with serve(tmp_path / "models") as server:
        home = Bundle(bundle)
        runtime = connect(f"triton@{server.report.grpc}", home, RuntimeOptions())
        runtime({name: array[:1] for name, array in home.golden().inputs.items()})
        runtime.close()
    with pytest.raises(OptionError, match="--preferred-batch"):
        PackageOptions(max_batch=2, preferred_batches=(4,))


def test_only_what_was_verified_is_tuned(bundle):
    with pytest.raises(ParityError):
        tune(bundle, TuneOptions(max_batch=10_000))
    for report in (bundle / "reports").glob("parity-*"):
        report.unlink()
    with pytest.raises(ParityError, match="no report"):
        tune(bundle, TuneOptions())
    assert not (bundle / "tune").exists()
    with pytest.raises(BundleError):
        tune(bundle, TuneOptions(artifact="onnx-int8"))
