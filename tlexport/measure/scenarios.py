"""MLPerf's scenarios, by its own LoadGen."""

from __future__ import annotations

import math
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tlexport.errors import MissingDependency, TlexportError
from tlexport.measure.load import Load

MOST_WORKERS = 64
"""Requests of `server` in flight at most; those beyond wait at the client, and it is said."""
SURE = 0.99
"""Confidence of LoadGen's early stopping: fewer queries than it needs are INVALID."""
KINDS = {"single-stream": "SingleStream", "server": "Server", "offline": "Offline"}
SAMPLE = re.compile(
    r'"Sample",.*?"ts":(?P<scheduled_us>-?[\d.]+),"args":\{"sample_seq":(?P<place>\d+),'
    r'.*?"issue_start_ns":(?P<issued_ns>-?\d+),"complete_ns":(?P<done_ns>\d+)'
)
REASON = re.compile(r"^\s+(.+?) satisfied\s*: NO$", re.IGNORECASE)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `rate_per_s` is how many arrive (server) or what is expected (offline).

    `seconds` and `queries` are both the least: LoadGen goes on until it has both. `percentile` and
    `latency_ms` are what its verdict on `server` is about; `workers` are requests in flight.
    """

    scenario: str
    seconds: float
    queries: int
    questions: int
    rate_per_s: float = 1.0
    percentile: float = 0.99
    latency_ms: float = 100.0
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a run, in the order of the requests that were answered.

    `latencies_s` float [answered], from the scheduled arrival to the answer, but of `offline`,
    where all arrive at once, from when it was sent; `ended_s` when each ended; `own_s` how long
    it lay at the client: LoadGen's delay and the wait for a free thread, of `offline` the time in
    which a thread asked nothing.
    """

    latencies_s: np.ndarray
    ended_s: np.ndarray
    own_s: np.ndarray
    errors: int
    first_error: TlexportError | None
    valid: bool
    reasons: tuple[str, ...]

    def windows(self, count: int) -> list[Load]:
        """The run cut into `count` windows of equal length, as if each had been a load."""
        if not len(self.ended_s):
            return [Load(np.empty(0), self.errors, 1e-9, self.first_error)]
        begin = float((self.ended_s - self.latencies_s).min())
        span = max(float(self.ended_s.max()) - begin, 1e-9)
        place = np.minimum(((self.ended_s - begin) / span * count).astype(int), count - 1)
        loads = [Load(self.latencies_s[place == n], 0, span / count, None) for n in range(count)]
        last = loads[-1]
        loads[-1] = Load(last.latencies_s, self.errors, last.busy_s, self.first_error)
        return loads


def most_late(queries: int, percentile: float) -> int:
    """How many of so many may be later than promised for a VALID `server`; -1: none would be.

    So few that they would be that, or fewer, in at most 1 % of the runs if `percentile` were just
    kept. Source: the early stopping of MLPerf Inference, whose tolerance for `server` is zero.
    """
    share, late, chance = 1 - percentile, -1, 0.0
    while late < queries:
        ways = math.lgamma(queries + 1) - math.lgamma(late + 2) - math.lgamma(queries - late)
        among = (late + 1) * math.log(share) + (queries - late - 1) * math.log(percentile)
        chance += math.exp(ways + among)
        if chance > 1 - SURE:
            break
        late += 1
    return late


def play(plan: Plan, ask: Callable[[int], object]) -> Outcome:
    """Let LoadGen ask: `ask(n)` makes one request with question n and returns with the answer.

    A request that fails is counted and never asked again; the verdict is then INVALID, whatever
    LoadGen says, since it knows no failure. The latency of `server` counts from the arrival as
    it was scheduled: a server that stalls cannot hide its queue.

    Raises:
        MissingDependency: mlcommons-loadgen is not installed.
        Exception: whatever `ask` raises that is not a TlexportError.
    """
    try:
        import mlperf_loadgen as loadgen
    except ImportError as error:
        raise MissingDependency(
            f"MLPerf's LoadGen for --scenario {plan.scenario}",
            got=f"it cannot be imported: {error}",
            fix="pip install 'tlexport[bench]', or use --scenario closed-loop",
        ) from error
    desk = _Desk(loadgen, plan, ask)
    with tempfile.TemporaryDirectory(prefix="tlexport-loadgen-") as folder:
        _run(loadgen, plan, desk, folder)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
        trace = (Path(folder) / "mlperf_log_trace.json").read_text()
    if desk.crash is not None:
        raise desk.crash
    return _outcome(desk, summary, trace)


class _Desk:
    """Takes LoadGen's queries and has them asked.

    Nothing may be raised into LoadGen (it is C++ and would end the process): what is no refusal
    of a server is kept, and everything after it is answered unasked.
    """

    def __init__(self, loadgen: Any, plan: Plan, ask: Callable[[int], object]) -> None:
        self._loadgen = loadgen
        self._ask = ask
        self.plan = plan
        self._direct = plan.scenario == "single-stream"
        self._most = MOST_WORKERS if plan.scenario == "server" else plan.workers
        self._waiting: queue.SimpleQueue[tuple[int, Any, float] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()
        self._asked = 0
        self.waits_s: dict[int, float] = {}
        self.took_s: dict[int, float] = {}
        self.failed: set[int] = set()
        self.first_error: TlexportError | None = None
        self.crash: BaseException | None = None

    def issue(self, samples: list[Any]) -> None:
        """Called by LoadGen, from its thread."""
        now = time.perf_counter()
        for sample in samples:
            place, self._asked = self._asked, self._asked + 1
            if self._direct:
                self._answer(place, sample, now)
            else:
                self._hire()
                self._waiting.put((place, sample, now))

    def flush(self) -> None:
        """Called by LoadGen when it has no more: nothing is held back here."""

    def stop(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _hire(self) -> None:
        """A thread more, where all have work and more are allowed."""
        with self._lock:
            if self._idle > self._waiting.qsize() or len(self._threads) >= self._most:
                return
            thread = threading.Thread(target=self._work, name="scenario", daemon=True)
            self._threads.append(thread)
            self._idle += 1
        thread.start()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with self._lock:
                self._idle -= 1
            self._answer(*job)
            with self._lock:
                self._idle += 1

    def _answer(self, place: int, sample: Any, issued: float) -> None:
        began = time.perf_counter()
        try:
            if self.crash is None:
                self._ask(sample.index)
            self.took_s[place] = time.perf_counter() - began
            self.waits_s[place] = began - issued
        except TlexportError as error:
            self.failed.add(place)
            self.first_error = self.first_error or error
        except BaseException as error:  # raised again when LoadGen has returned
            self.crash = error
        finally:
            response = self._loadgen.QuerySampleResponse(sample.id, 0, 0)
            self._loadgen.QuerySamplesComplete([response])


def _run(loadgen: Any, plan: Plan, desk: _Desk, folder: str) -> None:
    """One test; it runs in a thread of its own, so that Ctrl-C is heard."""
    logs = loadgen.LogSettings()
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    logs.log_output, logs.enable_trace = output, True
    settings = _settings(loadgen, plan)
    system = loadgen.ConstructSUT(desk.issue, desk.flush)
    library = loadgen.ConstructQSL(plan.questions, plan.questions, _nothing, _nothing)
    test = threading.Thread(
        target=loadgen.StartTestWithLogSettings,
        args=(system, library, settings, logs, os.devnull),
        name="loadgen",
    )
    test.start()
    try:
        test.join()
    except BaseException as error:
        desk.crash = error
        test.join()
    finally:
        desk.stop()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)


def _settings(loadgen: Any, plan: Plan) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, KINDS[plan.scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(plan.seconds * 1e3))
    settings.min_query_count = plan.queries
    settings.single_stream_expected_latency_ns = max(1, round(1e9 / plan.rate_per_s))
    settings.offline_expected_qps = plan.rate_per_s
    settings.server_target_qps = plan.rate_per_s
    settings.server_target_latency_ns = max(1, round(plan.latency_ms * 1e6))
    settings.server_target_latency_percentile = plan.percentile
    settings.qsl_rng_seed = settings.sample_index_rng_seed = plan.seed
    settings.schedule_rng_seed = plan.seed
    return settings


def _nothing(samples: list[int]) -> None:
    """The questions are in memory already."""


def _outcome(desk: _Desk, summary: str, trace: str) -> Outcome:
    rows = [
        (int(m["place"]), float(m["scheduled_us"]) * 1e-6, int(m["issued_ns"]), int(m["done_ns"]))
        for m in SAMPLE.finditer(trace)
        if int(m["place"]) in desk.took_s
    ]
    scheduled = np.array([row[1] for row in rows])
    latencies_s = np.array([row[3] for row in rows], dtype=float) * 1e-9
    own_s = np.array([max(0, row[2]) * 1e-9 + desk.waits_s[row[0]] for row in rows])
    if desk.plan.scenario == "offline":
        span_s = float(latencies_s.max()) if len(rows) else 0.0
        scheduled = scheduled + latencies_s
        latencies_s = np.array([desk.took_s[row[0]] for row in rows])
        scheduled = scheduled - latencies_s
        each_s = span_s * desk.plan.workers / max(1, len(rows))
        own_s = np.full(len(rows), max(0.0, each_s - float(latencies_s.mean()) if rows else 0.0))
    order = np.argsort(scheduled + latencies_s, kind="stable")
    valid = "Result is : VALID" in summary
    reasons = [m[1].strip() for line in summary.splitlines() if (m := REASON.match(line))]
    told = tuple(f"{reason} not satisfied" for reason in reasons)
    if desk.failed:
        valid, told = False, (f"{len(desk.failed)} requests failed", *told)
    return Outcome(
        latencies_s=latencies_s[order],
        ended_s=(scheduled + latencies_s)[order],
        own_s=own_s[order],
        errors=len(desk.failed),
        first_error=desk.first_error,
        valid=valid,
        reasons=told,
    )
