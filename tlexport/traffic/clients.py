"""Who asks: this process, or processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import msgspec

from tlexport import child
from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.errors import TlexportError
from tlexport.measure.load import Load, joined
from tlexport.measure.scenarios import Outcome, Plan
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect
from tlexport.traffic.asker import Asker

START_S = 120.0
"""Longest wait for a client process to open its runtime."""
END_S = 5.0


class Client(Protocol):
    """Asks a runtime that is open.

    `processes` is 0 where this process does it; `own_s` is what asking takes per request where no
    processor time tells.
    """

    name: str
    processes: int
    own_s: float

    def check(self, batch: int) -> None:
        """Ask once and look at the answer."""

    def warm_up(self, batch: int, requests: int, concurrency: int) -> None:
        """Ask without a clock."""

    def closed_loop(self, batch: int, seconds: float, concurrency: int) -> Load:
        """Keep so many requests in flight for so long."""

    def play(self, batch: int, plan: Plan) -> tuple[Outcome, float | None]:
        """One of MLPerf's scenarios, and the processor time of asking where it is known."""

    def counters(self) -> Mapping[str, float]:
        """A server's own totals; empty in process."""

    def facts(self) -> Mapping[str, Any]:
        """What it runs on."""

    def close(self) -> None:
        """Give everything back."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a client process has to open and ask."""

    runtime: str
    bundle: str
    options: RuntimeOptions
    batches: tuple[int, ...]


def client(home: Bundle, order: Order, processes: int, concurrency: int) -> Client:
    """Open a runtime and whoever asks it.

    What runs in this process is asked by it. What is reached over a wire (its facts name the
    protocol) is asked by processes that do nothing else, so that this one, with its threads and
    its memory, is not in the way: `processes` of them, 0 for half the cores, never more than there
    are requests in flight. Each opens the runtime anew, by its name.

    Raises:
        TlexportError: the runtime cannot be opened.
    """
    runtime = connect(order.runtime, home, order.options)
    asker = Asker(runtime, home.golden(), order.batches)
    if "protocol" not in runtime.facts():
        return asker
    try:
        wanted = min(processes or max(1, cores() // 2), concurrency)
        return Processes(asker, [_Process(order) for _ in range(wanted)])
    except BaseException:
        runtime.close()
        raise


class Processes:
    """Processes that hold their connections and ask together."""

    own_s = 0.0

    def __init__(self, asker: Asker, processes: Sequence[_Process]) -> None:
        self.name = asker.runtime.name
        self.processes = len(processes)
        self._asker = asker
        self._all = processes
        try:
            for process in processes:
                process.answer(START_S)
        except BaseException:
            self.close()
            raise

    def check(self, batch: int) -> None:
        """Ask once and look at the answer."""
        self._all[0].call("check", batch)

    def warm_up(self, batch: int, requests: int, concurrency: int) -> None:
        """Ask without a clock, each process as many at a time as it will."""
        shares = _shares(concurrency, self._all)
        for process, share in shares:
            process.send("warm_up", batch, requests, share)
        _answers([process for process, _ in shares])

    def closed_loop(self, batch: int, seconds: float, concurrency: int) -> Load:
        """All together keep `concurrency` in flight; who is through goes on until all are."""
        shares = _shares(concurrency, self._all)
        for process, share in shares:
            process.send("closed_loop", batch, seconds, share)
        loads = _answers([process for process, _ in shares])
        for process, _ in shares:
            process.send("enough")
        for process, _ in shares:
            process.answer()
        return joined(loads)

    def play(self, batch: int, plan: Plan) -> tuple[Outcome, float | None]:
        """LoadGen runs in the first process."""
        found: tuple[Outcome, float | None] = self._all[0].call("play", batch, plan)
        return found

    def counters(self) -> Mapping[str, float]:
        """The server's own totals, over a connection of this process."""
        return self._asker.counters()

    def facts(self) -> Mapping[str, Any]:
        """What it runs on."""
        return self._asker.facts()

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.hang_up()
        for process in self._all:
            process.end()
        self._asker.close()


def _shares(concurrency: int, processes: Sequence[_Process]) -> list[tuple[_Process, int]]:
    """How many requests each process keeps in flight; who would have none is left out."""
    whole, rest = divmod(concurrency, len(processes))
    shares = [whole + (place < rest) for place in range(len(processes))]
    return [(p, share) for p, share in zip(processes, shares, strict=True) if share]


def _answers(processes: Sequence[_Process]) -> list[Any]:
    """What came of it for each; that one has died is heard before the others are through."""
    pending, found = {process.pipe: process for process in processes}, {}
    while pending:
        for pipe in multiprocessing.connection.wait(list(pending)):
            process = pending.pop(cast(Any, pipe))
            found[process] = process.answer()
    return [found[process] for process in processes]


class _Process:
    """A process that runs `client_process` and takes calls over a pipe."""

    def __init__(self, order: Order) -> None:
        self._process, self.pipe = child.start("tlexport.traffic.client_process")
        self.pipe.send(order)

    def send(self, name: str, *arguments: Any) -> None:
        """Ask it to do something."""
        try:
            self.pipe.send((name, *arguments))
        except OSError as error:
            raise self._died() from error

    def answer(self, timeout_s: float | None = None) -> Any:
        """What came of it.

        Raises:
            TlexportError: its own, or it died.
        """
        try:
            if not self.pipe.poll(timeout_s):
                raise TlexportError(
                    "a client process that starts",
                    got=f"nothing from it within {timeout_s:g} s",
                    fix="look at what the machine is busy with",
                )
            found = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(found, BaseException):
            raise found
        return found

    def call(self, name: str, *arguments: Any) -> Any:
        """Ask it to do something and wait for what comes of it."""
        self.send(name, *arguments)
        return self.answer()

    def hang_up(self) -> None:
        """Close the pipe: it ends by itself."""
        self.pipe.close()

    def end(self) -> None:
        """Wait until it has ended; kill it if it does not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
        self._process.wait()

    def _died(self) -> TlexportError:
        with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe closes a moment earlier
            self._process.wait(1.0)
        code = self._process.returncode
        return TlexportError(
            "the client process to live until the end",
            got="it closed its pipe" if code is None else f"it ended with exit code {code}",
            fix="look for a want of memory (`dmesg`), and run it again",
        )
