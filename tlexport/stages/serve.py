"""A Triton repository becomes a ready server."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from tlexport.bundle import read_tensors
from tlexport.environment import cores
from tlexport.errors import RepositoryError, ServerError
from tlexport.inquiry.steps import held, raw_answers
from tlexport.inquiry.truth import SHARES
from tlexport.options import RuntimeOptions, ServeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import ServedModel, ServeReport
from tlexport.runtimes import connect
from tlexport.serving import choice, pipeline, remote, repository
from tlexport.serving.lint import lint
from tlexport.serving.server import Server
from tlexport.spec import Tensors

TOLERANCE = 1e-3
"""Largest difference from a golden answer, as a share of the outputs' scale: a smoke test of the
served path, not the proof that `verify` gives. The original's answers are golden, so that a lower
precision has its own share of room."""

MOST_TOLD = 5
"""Findings that are told when the server refuses the repository."""


class Serving:
    """A ready server; leaving the `with` block stops it."""

    def __init__(self, server: Server, report: ServeReport) -> None:
        self.report = report
        self._server = server

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            ServerError: it ended by itself, with its own last reason.
        """
        self._server.wait()

    def stop(self) -> None:
        """Stop the server and wait until it is gone."""
        self._server.stop()

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def serve(
    place: Path | str = "model_repository",
    options: ServeOptions | None = None,
    *,
    progress: Progress = silent,
) -> Serving:
    """Start a server on the repository at `place`, and ask each model one golden sample.

    The server stops with the handle, or with this process, whatever ends it.

    Raises:
        RepositoryError: the folder is not a model repository.
        ServerError: no server can run here, it does not start (its own reason is told), or a
            model does not answer its golden sample as it should.
    """
    options = options or ServeOptions()
    folder = Path(place)
    if (url := remote.url_of(place)) is not None:
        raise RepositoryError(
            "a folder to serve here",
            got=repr(url),
            fix="copy it to this machine; a server of NVIDIA's image takes it as "
            f"--model-repository={url}",
        )
    repository.check(folder)
    kind, reason = choice.choose(options.server)
    began = time.perf_counter()
    try:
        server, ready = choice.start(kind, folder, options, progress)
    except ServerError as error:
        raise explained(error, folder) from error
    ready_s = time.perf_counter() - began
    try:
        models = []
        names = {entry["name"] for entry in ready}
        for done, entry in enumerate(ready):
            progress("asking a golden sample", done, len(ready))
            models.append(_asked(server.grpc, folder, entry, names))
        progress("asking a golden sample", len(ready), len(ready))
    except BaseException:
        server.stop()
        raise
    report = ServeReport(
        server=kind,
        reason=reason,
        http=server.http,
        grpc=server.grpc,
        metrics=server.metrics,
        pid=server.pid,
        ready_s=ready_s,
        log=str(server.log),
        models=tuple(models),
    )
    return Serving(server, report)


def explained(error: ServerError, folder: Path) -> ServerError:
    """A server's refusal with what the load rules say to the same repository, if anything."""
    found = [each for each in lint(folder, cores=cores()) if each.severity == "error"]
    if not found:
        return error
    told = [f"{each.model}, {each.rule}: {each.fix}" for each in found[:MOST_TOLD]]
    told += [f"`tlexport lint {folder}` tells the whole of it"]
    return type(error)(error.expected, got=error.got, fix="\n       ".join(told))


def _asked(address: str, folder: Path, entry: dict[str, str], names: set[str]) -> ServedModel:
    """A served model, once it was asked its golden sample."""
    name, version = entry["name"], entry.get("version", "")
    golden = pipeline.golden_of(folder / name / version)
    if golden is not None:
        label, off = _ask_raw(address, (folder, name, version), golden)
        return ServedModel(name=name, version=version, golden_max_abs=off, golden_label=label)
    around = pipeline.around_step(name)
    return ServedModel(
        name=name,
        version=version,
        golden_max_abs=ask_golden(address, folder, name, version),
        step_of=around if around in names else "",
    )


def _ask_raw(
    address: str, place: tuple[Path, str, str], golden: pipeline.Golden
) -> tuple[str, float]:
    """Ask a pipeline its golden files: the label of the first, and the largest difference.

    Raises:
        ServerError: an answer is an error, or not the golden one within what its share of the
            scores' scale does to a probability.
    """
    folder, model, version = place
    fix = "verify the bundle and package it again; a served file or the server is another"
    share = _tolerance(folder / model / version)
    runtime = connect(f"triton@{address}", None, RuntimeOptions(model=model, version=version))
    first, largest = "", 0.0
    try:
        for row, file in enumerate(golden.raw):
            (told,) = raw_answers(runtime, [(folder / model / version / file).read_bytes()])
            found = held(golden, row, told, share)
            if not found.fits:
                raise ServerError(
                    f"{model!r} to answer {file!r} as when it was packaged: "
                    f"{golden.labels[row][0]!r} at {golden.probabilities[row][0]:.4g}",
                    got=told.error or f"{told.labels[0]!r} at {told.probabilities[0]:.4g}",
                    fix=fix,
                )
            first, largest = first or told.labels[0], max(largest, found.off)
    finally:
        runtime.close()
    return first, largest


def ask_golden(address: str, folder: Path, model: str, version: str) -> float | None:
    """Ask a served version its first golden sample; the largest difference, None without one.

    Raises:
        ServerError: the answer is empty, or not the golden one within its share of the scale.
    """
    path = folder / model / version / repository.GOLDEN
    if not path.is_file():
        return None
    golden = read_tensors(path)
    inputs = {n.removeprefix("input:"): a[:1] for n, a in golden.items() if n.startswith("input:")}
    wanted = {n.removeprefix("output:"): a for n, a in golden.items() if n.startswith("output:")}
    runtime = connect(f"triton@{address}", None, RuntimeOptions(model=model, version=version))
    try:
        answers = runtime(inputs)
    finally:
        runtime.close()
    room = _tolerance(path.parent)
    return max(_difference(model, name, answers, array, room) for name, array in wanted.items())


def _tolerance(version: Path) -> float:
    """The share of the scale that answers may be off, by the precision of what is served."""
    path = version / repository.ORIGIN
    if not path.is_file():
        return TOLERANCE
    try:
        artifact = msgspec.json.decode(path.read_bytes(), type=repository.Origin).artifact
    except msgspec.DecodeError as error:
        raise RepositoryError(
            f"where a version comes from in {str(path)!r}", got=str(error), fix="package it again"
        ) from error
    return max(TOLERANCE, SHARES.get(artifact.rpartition("-")[2], 0.0))


def _difference(
    model: str, name: str, answers: Tensors, golden: np.ndarray, tolerance: float = TOLERANCE
) -> float:
    answer = answers.get(name)
    expected = f"{model!r} to answer {name!r} as when it was packaged"
    fix = "verify the bundle and package it again; the served file or the server is another"
    if answer is None or answer.shape != golden[:1].shape:
        got = "nothing" if answer is None or not answer.size else f"shape {list(answer.shape)}"
        raise ServerError(expected, got=got, fix=fix)
    if not np.issubdtype(golden.dtype, np.number):
        if not np.array_equal(answer, golden[:1]):
            raise ServerError(expected, got="other values", fix=fix)
        return 0.0
    scale = float(np.abs(golden.astype(np.float64)).max()) or 1.0
    found = float(np.abs(answer.astype(np.float64) - golden[:1].astype(np.float64)).max())
    if not found <= tolerance * scale:  # not-a-number is not within anything
        raise ServerError(
            expected, got=f"a difference of {found:.3g} where values reach {scale:.3g}", fix=fix
        )
    return found
