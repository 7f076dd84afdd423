"""Which server to start, and starting it until it is ready."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tlexport.errors import ServerError
from tlexport.options import ServeOptions
from tlexport.progress import Progress, silent
from tlexport.serving import docker, embedded
from tlexport.serving.server import Ports, PortTaken, Server, choose_ports

TRIES = 3


def choose(wanted: str) -> tuple[str, str]:
    """The kind of server to start, and why.

    Raises:
        ServerError: neither can run here; both reasons are told.
    """
    if wanted != "auto":
        return wanted, f"--server {wanted} was asked for"
    no_embedded = embedded.unsupported()
    if no_embedded is None:
        return "embedded", "this machine runs the embedded server, which needs no Docker"
    no_docker = docker.unsupported()
    if no_docker is None:
        return "docker", no_embedded
    raise ServerError(
        "a way to run Triton here",
        got=f"{no_embedded}; {no_docker}",
        fix="install Docker, or use Python 3.11 or 3.12 on Linux x86-64 with glibc 2.35 or newer",
    )


def start(
    kind: str, repository: Path, options: ServeOptions, progress: Progress = silent
) -> tuple[Server, list[dict[str, str]]]:
    """Start a server and wait until it is ready; the server, and its models by name and version.

    A free port that is taken before the server has it is chosen anew.

    Raises:
        ServerError: it does not start, with its own reason, or not in time.
    """
    for left in reversed(range(TRIES)):
        ports = choose_ports(options)
        server = _launch(kind, repository, options, ports, progress)
        with _stopped_on_error(server):
            progress("starting the server", 0, 1)
            try:
                ready = server.await_ready(options.timeout_s)
                progress("starting the server", 1, 1)
                return server, ready
            except PortTaken:
                server.stop()
                if not left:
                    raise
    raise AssertionError("the last try returns or raises")


def _launch(
    kind: str, repository: Path, options: ServeOptions, ports: Ports, progress: Progress
) -> Server:
    if kind == "docker":
        return docker.start(repository, options, ports)
    return embedded.start(repository, options, ports, progress)


@contextlib.contextmanager
def _stopped_on_error(server: Server) -> Iterator[None]:
    try:
        yield
    except BaseException:
        server.stop()
        raise
