"""A Triton repository becomes a ready server."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import numpy as np

from tlexport.bundle import read_tensors
from tlexport.environment import cores
from tlexport.errors import RepositoryError, ServerError
from tlexport.options import RuntimeOptions, ServeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import ServedModel, ServeReport
from tlexport.runtimes import connect
from tlexport.serving import choice, remote, repository
from tlexport.serving.lint import lint
from tlexport.serving.server import Server
from tlexport.spec import Tensors

TOLERANCE = 1e-3
"""Largest difference from a golden answer, as a share of the outputs' scale: a smoke test of the
served path, not the proof that `verify` gives."""


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
        for done, entry in enumerate(ready):
            progress("asking a golden sample", done, len(ready))
            name, version = entry["name"], entry.get("version", "")
            asked = ask_golden(server.grpc, folder, name, version)
            models.append(ServedModel(name=name, version=version, golden_max_abs=asked))
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


def ask_golden(address: str, folder: Path, model: str, version: str) -> float | None:
    """Ask a served version its first golden sample; the largest difference, None without one.

    Raises:
        ServerError: the answer is empty, or not the golden one within TOLERANCE of its scale.
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
    return max(_difference(model, name, answers, array) for name, array in wanted.items())


def _difference(model: str, name: str, answers: Tensors, golden: np.ndarray) -> float:
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
    if not found <= TOLERANCE * scale:  # not-a-number is not within anything
        raise ServerError(
            expected, got=f"a difference of {found:.3g} where values reach {scale:.3g}", fix=fix
        )
    return found
