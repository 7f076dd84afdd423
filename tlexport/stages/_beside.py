"""Exports beside this process, which computes features.

PyTorch's exporter is Python from end to end: it keeps one core busy, and the interpreter with it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from tlexport import child, plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import TlexportError
from tlexport.options import ExportOptions

TARGET = "onnx"

Made = tuple[Artifact, Path, float]
"""An artifact, the folder its files lie in, and the seconds it took."""

Exporter = Callable[[Bundle], Callable[[], Made]]
"""Begins the export of a bundle; what it returns waits for it, and raises what that raised."""


@contextlib.contextmanager
def exporter(count: int, work: Path) -> Iterator[Exporter]:
    """What exports `count` bundles, one after the other, below the folder `work`.

    A single one is exported here once it is waited for: there is nothing to do meanwhile.
    """
    if count < 2:
        yield lambda bundle: lambda: _exported(bundle.root, work)
        return
    process = _Process(work)
    try:
        yield process.begin
    finally:
        process.end()


def _exported(root: Path, work: Path) -> Made:
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(dir=work, prefix="export."))
    target = plugins.load("targets", TARGET)
    made: Artifact = target.export(Bundle(root), folder, ExportOptions(target=TARGET))
    return made, folder, time.perf_counter() - began


class _Process:
    """A process that runs this file, from when there is something for it to do."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._started: tuple[subprocess.Popen[bytes], Connection] | None = None

    def begin(self, bundle: Bundle) -> Callable[[], Made]:
        if self._started is None:
            self._started = child.start("tlexport.stages._beside")
        _, pipe = self._started
        with contextlib.suppress(OSError):  # it has died, which is found where it is waited for
            pipe.send((bundle.root, self._work))

        def wait() -> Made:
            try:
                found = pipe.recv()
            except (EOFError, OSError):
                return _exported(bundle.root, self._work)  # it died, for want of memory perhaps
            if isinstance(found, TlexportError):
                raise found
            made: Made = found
            return made

        return wait

    def end(self) -> None:
        if self._started is not None:
            process, pipe = self._started
            process.kill()  # what it was at is wanted no more
            process.wait()
            pipe.close()


def main(pipe: Connection) -> None:
    """Export what is asked for until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    plugins.load("targets", TARGET)  # PyTorch takes seconds, in which the first one is written
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            root, work = pipe.recv()
            try:
                pipe.send(_exported(root, work))
            except TlexportError as error:  # raised again where it was asked for
                pipe.send(error)
            except Exception:  # done again there, and raised with all that belongs to it
                return


if __name__ == "__main__":
    child.run(main)
