"""A process that runs one of our modules.

It takes what it is to do over a pipe. It is no fork (threads and sockets would come along) and
needs nothing of the main module, as multiprocessing's own would. Its end of the pipe is closed with
it, and it is to end when ours is.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path


def start(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run `python -m MODULE`, whose main is to call `run`; its standard output goes nowhere."""
    ours, theirs = multiprocessing.connection.Pipe()
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(number)],
            pass_fds=(number,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return process, ours


def run(main: Callable[[Connection], None]) -> None:
    """What the module that was started does: `main` with its end of the pipe."""
    main(Connection(int(sys.argv[1])))
