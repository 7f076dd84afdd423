"""Keeps a server no longer than its parent lives.

Run as a script with one argument, a JSON object:

    command      the server's command line
    parent       process id of the parent
    stop_s       seconds a server may take to stop before it is killed
    shm_prefix   /dev/shm regions to remove afterwards ("" for none)
    afterwards   a command to run when the server is gone ([] for none)

The parent holds this process's standard input. When that closes, when the parent is gone, or on
SIGTERM, the server is stopped; when the server ends by itself, so does this process, with its
code, and what the server left running is killed. The kernel kills the server should this process
be killed. Standard library only: it is
started as `python -I -S`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PARENT_CHECK_S = 0.5
STOP_CHECK_S = 0.02
STUB = b"/triton_python_backend_stub"


def supervise(command: list[str], stop_s: float, parent: int) -> int:
    """Run `command` until it ends or must; its exit code, 128 + signal if a signal ended it."""
    wakes, told = os.pipe()
    for end in (wakes, told):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(told)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with(os.getpid()))
    while (code := server.poll()) is None:
        ready, _, _ = select.select([0, wakes], [], [], PARENT_CHECK_S)
        if wakes in ready:
            os.read(wakes, 64)
        if asked or os.getppid() != parent or (0 in ready and not os.read(0, 64)):
            code = _stop(server, stop_s)
            break
    _end_orphans()
    return code if code >= 0 else 128 - code


def remove_regions(prefix: str, folder: Path = Path("/dev/shm")) -> None:
    """Unlink the shared memory regions whose name starts with `prefix`."""
    for region in folder.glob(f"{prefix}*") if prefix else ():
        region.unlink(missing_ok=True)


def end_strays(prefix: str, folder: Path = Path("/dev/shm")) -> None:
    """Clean up where a supervisor was itself killed: its server's stubs, then their regions.

    A stub has the name of its region in its command line; one that was still starting when its
    server went waits for it for ever.
    """
    for place in Path("/proc").glob("[1-9]*") if prefix else ():
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            program, _, rest = (place / "cmdline").read_bytes().partition(b"\0")
            told = rest.split(b"\0")
            if program.endswith(STUB) and any(each.startswith(prefix.encode()) for each in told):
                os.kill(int(place.name), signal.SIGKILL)
    remove_regions(prefix, folder)


def _stop(server: subprocess.Popen[bytes], stop_s: float) -> int:
    """Ask the server to end; its exit code, 0 where it had nothing left to do but to wait.

    It answers what is in flight, then has each model's process end, and then looks once a second
    whether they have: they have, where its last child is gone.
    """
    server.terminate()
    until, worked = time.monotonic() + stop_s, bool(_children(server.pid))
    while server.poll() is None:
        idle = worked and not _children(server.pid)
        if idle or time.monotonic() > until:
            server.kill()
            code = server.wait()
            return 0 if idle else code
        time.sleep(STOP_CHECK_S)
    return server.returncode


def _children(pid: int) -> list[int]:
    """Processes that any thread of a process has started."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += map(int, (thread / "children").read_text().split())
    return found


def _end_orphans() -> None:
    """Kill what the server left running: as subreaper this process is its orphans' parent.

    A server's stub that is still starting when the server is killed waits for it for ever.
    """
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for child in _children(os.getpid()):
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.01)
        except ChildProcessError:
            return


def _die_with(supervisor: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    return before_exec


def main() -> int:
    """Supervise what the argument says."""
    told = json.loads(sys.argv[1])
    try:
        return supervise(told["command"], told["stop_s"], told["parent"])
    finally:
        remove_regions(told["shm_prefix"])
        if told["afterwards"]:
            subprocess.run(told["afterwards"], stdin=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main())
