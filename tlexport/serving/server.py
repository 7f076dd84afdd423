"""A Triton server's process: started, awaited, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tlexport.errors import ServerError
from tlexport.options import ServeOptions
from tlexport.serving import refusals, supervise

STOP_S = 15.0
POLL_S = 0.05
LISTENS = "Started Metrics Service at"
"""What the embedded server's log says when its other ports are its own: that of HTTP is announced
before it is taken."""


class PortTaken(ServerError):
    """A port was free when it was chosen and is not any more."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server listens."""

    host: str
    http: int
    grpc: int
    metrics: int

    @property
    def reach(self) -> str:
        """The address a client on this machine uses."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)

    def at(self, port: int) -> str:
        """HOST:PORT for a client on this machine."""
        return f"[{self.reach}]:{port}" if ":" in self.reach else f"{self.reach}:{port}"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and what to do when it is gone."""

    kind: str
    command: tuple[str, ...]
    environ: dict[str, str]
    ports: Ports
    folder: Path
    shm_prefix: str = ""
    afterwards: tuple[str, ...] = ()


class Server:
    """A server's process under its supervisor; stops with this process, whatever ends it.

    Leaves by `stop()`, by the end of a `with` block, or when this process is gone.
    """

    def __init__(self, launch: Launch) -> None:
        self.kind = launch.kind
        self.ports = launch.ports
        self.log = launch.folder / "server.log"
        self._launch = launch
        self._was_ready = False
        told = {
            "command": launch.command,
            "parent": os.getpid(),
            "stop_s": STOP_S,
            "shm_prefix": launch.shm_prefix,
            "afterwards": launch.afterwards,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(supervise.__file__), json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch.environ,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the supervisor; SIGTERM to it stops the server."""
        return self._process.pid

    @property
    def http(self) -> str:
        """HOST:PORT of the HTTP endpoint."""
        return self.ports.at(self.ports.http)

    @property
    def grpc(self) -> str:
        """HOST:PORT of the gRPC endpoint."""
        return self.ports.at(self.ports.grpc)

    @property
    def metrics(self) -> str:
        """HOST:PORT of the metrics endpoint."""
        return self.ports.at(self.ports.metrics)

    def await_ready(self, timeout_s: float) -> list[dict[str, str]]:
        """Wait until the server and every model is ready; the models with name and version.

        Raises:
            ServerError: it ended, with its own reason, or was not ready in time.
            PortTaken: it ended because a port was taken meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._ended("to start")
            if self._get("GET", "/v2/health/ready") is not None and self._listens():
                index = self._get("POST", "/v2/repository/index")
                models = [entry for entry in index or [] if entry.get("state") == "READY"]
                self._was_ready = True
                return models
            time.sleep(POLL_S)
        raise ServerError(
            f"a server that is ready within {timeout_s:g} s",
            got=f"{refusals.last_words(self.text())} (log: {str(self.log)!r})",
            fix="pass a longer --timeout-s, or read the log for what it waits for",
        )

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            ServerError: it ended by itself, with its own last reason.
        """
        code = self._process.wait()
        if code not in (0, 143):
            raise self._ended("to keep running")

    def stop(self) -> None:
        """Stop the server and wait until it is gone; once is enough, twice does no harm."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()  # a fork of this process may hold the pipe open
        try:
            code = self._process.wait(STOP_S + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code < 0:  # the supervisor was killed before it could clean up
            supervise.end_strays(self._launch.shm_prefix)
        if self._was_ready and code == 0:
            shutil.rmtree(self._launch.folder, ignore_errors=True)

    def text(self) -> str:
        """What the server has said so far."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def _get(self, method: str, path: str) -> Any:
        """The JSON answer to a request, [] for an empty one, None for none or a refusal."""
        connection = http.client.HTTPConnection(self.ports.reach, self.ports.http, timeout=2)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            return (json.loads(body) if body else []) if response.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def _listens(self) -> bool:
        """Whether it is this server that answered: another may have taken its port meanwhile."""
        return self.kind != "embedded" or LISTENS in self.text()

    def _ended(self, expected: str) -> ServerError:
        text, code = self.text(), self._process.returncode
        killed = -code if code < 0 else max(0, code - 128)
        killed = 0 if refusals.refused(text) else killed  # it may crash once it has refused a model
        why = f"killed by signal {killed}; it said last: " if killed else ""
        kind = PortTaken if refusals.port_taken(text) and not killed else ServerError
        return kind(
            f"the {self.kind} server {expected}",
            got=f"it ended with code {code}: {why}{refusals.reason(text)}\n"
            f"       log: {str(self.log)!r}",
            fix="start it again; if nobody killed it, see `dmesg` for a want of memory"
            if killed == signal.SIGKILL
            else refusals.fix_for(text),
        )


def choose_ports(options: ServeOptions) -> Ports:
    """The ports asked for, and free ones where 0 was asked.

    Raises:
        ServerError: a port asked for by number is taken, or the host is not an address here.
    """
    asked = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    host = _numeric(options.host)
    found: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        for name, port in sorted(asked.items(), key=lambda item: item[1] == 0):
            found[name] = held.enter_context(_held(host, port, name))
    return Ports(host=host, **found)


def _numeric(host: str) -> str:
    """The address of a host, IPv4 first: given a name, the server listens on 255.255.255.255."""
    try:
        if not host:
            raise OSError("an empty address")
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"to listen on {host!r}",
            got=getattr(error, "strerror", None) or str(error),
            fix="pass an address of this machine as --host",
        ) from error
    families = {entry[0]: str(entry[4][0]) for entry in reversed(found)}
    return families.get(socket.AF_INET) or families[socket.AF_INET6]


@contextlib.contextmanager
def _held(host: str, port: int, name: str) -> Iterator[int]:
    """Hold a port while others are chosen; its number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise ServerError(
                f"to listen on {host}:{port} for {name}",
                got=error.strerror or str(error),
                fix=f"pass another --{name}-port, or 0 for a free one"
                if port
                else "pass an address of this machine as --host",
            ) from error
        yield probe.getsockname()[1]
