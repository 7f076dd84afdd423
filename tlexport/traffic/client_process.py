"""A process that asks a runtime and does nothing else."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection
from typing import Any

from tlexport import child
from tlexport.bundle import Bundle
from tlexport.errors import TlexportError
from tlexport.runtimes import connect
from tlexport.traffic.asker import Asker, small_heap
from tlexport.traffic.clients import Order


def main(pipe: Connection) -> None:
    """Open what the order names, then do as told until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    try:
        order: Order = pipe.recv()
        try:
            home = Bundle(order.bundle)
            runtime = connect(order.runtime, home, order.options)
            asker = Asker(runtime, home.golden(), order.batches, own_process=True)
        except BaseException as error:  # raised again where it was asked for
            pipe.send(_portable(error))
            return
        pipe.send(None)
        with small_heap():
            while True:
                name, *arguments = pipe.recv()
                pipe.send(_done(asker, name, arguments))
                if name == "closed_loop":
                    batch, _, concurrency = arguments
                    asker.keep_up(batch, concurrency, pipe.poll)
                    pipe.recv()
                    pipe.send(None)
    except (EOFError, BrokenPipeError):
        return  # whoever started this is through


def _done(asker: Asker, name: str, arguments: list[Any]) -> Any:
    try:
        return getattr(asker, name)(*arguments)
    except BaseException as error:  # raised again where it was asked for
        return _portable(error)


def _portable(error: BaseException) -> TlexportError:
    if isinstance(error, TlexportError):
        return error
    return TlexportError(
        "the client process to ask without a fault",
        got=f"{type(error).__name__}: {error}",
        fix="run `tlexport --debug bench ...` with --runtime of this process to see where",
    )


if __name__ == "__main__":
    child.run(main)
