"""The settings that serve most within a latency."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tlexport.bundle import Artifact, Bundle
from tlexport.environment import cores, environment
from tlexport.errors import BundleError
from tlexport.files import sha256_of_json, write_atomic
from tlexport.options import (
    PackageOptions,
    RuntimeOptions,
    ServeOptions,
    Slo,
    TuneOptions,
    read_slo,
)
from tlexport.pages.tune import page
from tlexport.progress import Progress, silent
from tlexport.publishing.version import proven_version
from tlexport.reports import Interval, TunedSettings, TuneReport, TuneTrial
from tlexport.serving import choice, config, repository
from tlexport.serving.client import Client, parse
from tlexport.serving.server import Server
from tlexport.stages._space import BETTER, Search, space
from tlexport.traffic.clients import Client as AskingClient
from tlexport.traffic.clients import Order, client
from tlexport.traffic.ladder import Loaded, Rungs, climb, score
from tlexport.traffic.race import in_turns

FOLDER = "tune"
TRIED, STANDARD = "tried", "default"


def tune(
    bundle: Bundle | Path | str,
    options: TuneOptions | None = None,
    *,
    progress: Progress = silent,
) -> TuneReport:
    """Try settings on a real server under load; keep the best, and all that was tried.

    Each setting is loaded into one server, and asked golden samples of one row by more and more
    clients at a time. What counts is the throughput while the latency that was promised holds.
    Every trial is kept as it ends: the same command goes on where it was stopped. At the end the
    best and the default take turns on the same server, so that luck is not taken for speed.

    Raises:
        ParityError: the artifact was not verified.
        OptionError: the promise cannot be read, or batches beyond what was verified.
        ServerError: no server can run here, or it does not load the model.
    """
    options = options or TuneOptions()
    home = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    promise = read_slo(options.slo)
    artifact, most = home.artifact(options.artifact), _largest(home, options)
    everything = _default_first(space(cores(), most), most)
    folder = home.root / FOLDER / _key(home, artifact, options, most)
    if options.force:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"to keep what is tried in {str(folder)!r}",
            got=error.strerror or str(error),
            fix="make the bundle writable, or tune a copy of it",
        ) from error
    sampled = options.search == "optuna" or (
        options.search == "auto" and len(everything) > options.trials
    )
    search = Search(folder / "trials.journal", everything, sampled, options.seed)
    resumed = len(search.tried())
    rungs = Rungs(
        slo=promise,
        concurrency=options.concurrency,
        window_s=options.window_s,
        windows=options.windows,
    )
    with _Bench(home, options) as bench:
        stopped = _searched(search, bench, rungs, options, progress)
        tried = search.tried()
        best = max(tried.values(), key=lambda trial: score(trial, promise))
        default = tried[everything[0]]
        gain = None
        if best is not default:
            gain = bench.compared(best, default, progress)
        server = bench.kind
    report = TuneReport(
        model=home.spec.name,
        artifact=artifact.name,
        artifact_sha256=artifact.sha256,
        slo=str(promise),
        search="optuna" if sampled else "grid",
        space=len(everything),
        trials=tuple(tried.values()),
        resumed=resumed,
        stopped=stopped,
        default=default,
        best=best,
        gain=gain,
        different=gain is not None and not gain.low <= 1 <= gain.high,
        config=str(folder / config.CONFIG),
        page=str(folder / "tune.html"),
        cores=cores(),
        server=server,
        notes=tuple(_notes(best, promise)),
        environment=environment(),
    )
    write_atomic(folder / config.CONFIG, bench.text(best.settings).encode())
    write_atomic(folder / "tune.html", page(report).encode())
    home.write_report("tune", report)
    return report


def _largest(home: Bundle, options: TuneOptions) -> int:
    """The largest batch to try; what was not verified is not served.

    Raises:
        ParityError: the artifact was not verified, or not up to --max-batch.
    """
    if not all(tensor.batched for tensor in home.spec.inputs):
        return 0
    wanted = PackageOptions(artifact=options.artifact, max_batch=max(1, options.max_batch))
    proven = proven_version(home, wanted)
    return options.max_batch or max(check.batch for check in proven.report.checks)


def _default_first(everything: list[TunedSettings], most: int) -> list[TunedSettings]:
    """What `tlexport package` does unasked, before all others."""
    default = TunedSettings(
        instances=1, threads=cores(), max_batch=min(PackageOptions().max_batch, most)
    )
    return [default, *(each for each in everything if each != default)]


def _key(home: Bundle, artifact: Artifact, options: TuneOptions, most: int) -> str:
    """What makes earlier trials comparable: the file, the machine, and how it was asked."""
    asked = [options.slo, options.concurrency, options.window_s, options.windows, most]
    told = environment()
    machine = [told.cores, told.cpu, told.versions]
    return sha256_of_json([artifact.sha256, home.manifest.golden_sha256, asked, machine])[:12]


def _searched(
    search: Search, bench: _Bench, rungs: Rungs, options: TuneOptions, progress: Progress
) -> str:
    """Try until there is nothing left, or nothing better to be expected; why it ended."""
    tried = search.tried()
    best = max(tried.values(), key=lambda trial: score(trial, rungs.slo), default=None)
    idle, done = 0, len(tried)
    for trial, settings in search.next():
        if done >= options.trials:
            search.drop(trial)
            return f"{done} settings tried (--trials)"
        if idle >= options.patience:
            search.drop(trial)
            return f"{idle} settings in a row were no better (--patience)"
        progress("settings", done, options.trials)
        result = climb(settings, rungs, bench.serving(settings), best)
        search.tell(trial, result, score(result, rungs.slo))
        done += 1
        reached = score(result, rungs.slo)
        if best is None or reached > BETTER * score(best, rungs.slo):
            best, idle = result, 0
        else:
            idle += 1
    return "every setting was tried"


class _Bench:
    """One server, and the model loaded into it as it shall be tried."""

    def __init__(self, home: Bundle, options: TuneOptions) -> None:
        self._home = home
        self._options = options
        self._stack = contextlib.ExitStack()
        self._server: Server | None = None
        self._asking: dict[str, AskingClient] = {}
        self.kind = ""

    def __enter__(self) -> _Bench:
        self._folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tlexport.tune."))
        )
        self._place = self._folder / "models"
        return self

    def __exit__(self, *caught: object) -> None:
        for asking in self._asking.values():
            asking.close()
        self._stack.close()

    def serving(self, settings: TunedSettings, name: str = TRIED) -> Loaded:
        """Have the server serve the model so; what keeps requests of one row in flight.

        Those are made by processes of their own, which stay from setting to setting.

        Raises:
            ServerError: it does not start, or does not load the model.
        """
        self._install(settings, name)
        server = self._started()
        told = Client(parse(server.grpc), ServeOptions().timeout_s)
        try:
            told.load(name)
        finally:
            told.close()
        if name not in self._asking:
            order = Order(
                runtime=f"triton@{server.grpc}",
                bundle=str(self._home.root.absolute()),
                options=RuntimeOptions(model=name),
                batches=(1,),
            )
            self._asking[name] = client(self._home, order, 0, self._options.concurrency)
        asking = self._asking[name]
        asking.check(1)
        return lambda seconds, concurrency: asking.closed_loop(1, seconds, concurrency)

    def compared(self, best: TuneTrial, default: TuneTrial, progress: Progress) -> Interval | None:
        """How many times the default's throughput the best has, at its load, in turns."""
        if best.best is None:
            return None
        progress("best against default", 0, 1)
        ours, theirs = self.serving(best.settings), self.serving(default.settings, STANDARD)
        seconds, concurrency = self._options.window_s, best.best.concurrency
        found = in_turns(
            lambda: ours(seconds, concurrency),
            lambda: theirs(seconds, concurrency),
            self._options.rounds,
            self._options.seed,
        )
        progress("best against default", 1, 1)
        return found

    def text(self, settings: TunedSettings) -> str:
        """The configuration for a repository, under the model's own name."""
        new = proven_version(self._home, self._package(settings, self._home.spec.name)).new
        return config.text(new.configuration(1, {"1": new.origin.artifact_sha256}))

    def _install(self, settings: TunedSettings, name: str) -> None:
        """Put the model into the repository, or its configuration alone where it is there."""
        new = proven_version(self._home, self._package(settings, name)).new
        if not (self._place / name).is_dir():
            repository.install(self._place, new)
        written = config.text(new.configuration(1, {"1": new.origin.artifact_sha256}))
        write_atomic(self._place / name / config.CONFIG, written.encode())

    def _package(self, settings: TunedSettings, name: str) -> PackageOptions:
        return PackageOptions(
            name=name,
            artifact=self._options.artifact,
            max_batch=settings.max_batch,
            queue_delay_us=settings.queue_delay_us,
            preferred_batches=settings.preferred,
            instances=settings.instances,
            threads=settings.threads,
        )

    def _started(self) -> Server:
        if self._server is None:
            self.kind, _ = choice.choose(self._options.server)
            options = ServeOptions(control="explicit")
            self._server, _ = choice.start(self.kind, self._place, options)
            self._stack.callback(self._server.stop)
        return self._server


def _notes(best: TuneTrial, promise: Slo) -> Iterator[str]:
    if best.best is None:
        yield f"no setting holds {promise}: the least was {_least(best):.3g} ms"
        return
    if not best.best.sure:
        yield (
            f"{best.best.requests} requests are too few to be sure of {promise.name}: "
            "pass a longer --window-s"
        )
    if not best.best.stable:
        yield "the best one's windows did not agree within 10 %: measure on a quieter machine"


def _least(trial: TuneTrial) -> float:
    return min(point.quantile_ms for point in trial.points)
