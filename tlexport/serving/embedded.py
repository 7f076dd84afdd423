"""A real Triton server without Docker.

The server of the wheel `nvidia-pytriton` (2.51.0, release 24.10) runs from a private folder, see
runtime_folder.py, with our Python-based backend in place of the C++ one. On a loopback address
unless told otherwise: this server is of 2024 and not for an open network.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from tlexport.files import cache_folder
from tlexport.options import ServeOptions
from tlexport.progress import Progress, silent
from tlexport.serving.repository import fully_described
from tlexport.serving.runtime_folder import runtime_folder, unsupported
from tlexport.serving.server import Launch, Ports, Server
from tlexport.serving.supervise import end_strays

EXIT_TIMEOUT_S = 5
KEPT_LOGS_S = 7 * 24 * 3600.0
SHM = Path("/dev/shm")
_numbers = itertools.count(1)

__all__ = ["start", "unsupported"]


def start(
    repository: Path, options: ServeOptions, ports: Ports, progress: Progress = silent
) -> Server:
    """Start the server; it is not ready yet.

    Raises:
        ServerError: this machine cannot run it.
        MissingDependency: its wheel cannot be had.
    """
    runtime = runtime_folder(progress)
    _sweep_regions()
    folder = run_folder()
    prefix = f"tlexport_{os.getpid()}_{next(_numbers)}_"
    command = [
        str(runtime.server),
        f"--model-repository={_safe(repository.absolute(), folder / 'repository')}",
        f"--backend-directory={_safe(runtime.backends, folder / 'backends')}",
        f"--cache-directory={_safe(runtime.caches, folder / 'caches')}",
        *listening(ports),
        *control(repository, options),
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--metrics-config=summary_latencies=true",
        *_quiet(),
    ]
    launch = Launch(
        kind="embedded",
        command=tuple(command),
        environ=runtime.environ(),
        ports=ports,
        folder=folder,
        shm_prefix=prefix,
    )
    return Server(launch)


def listening(ports: Ports) -> list[str]:
    """The server's flags for where it listens."""
    is_6 = ":" in ports.host  # each library of the server's has its own way to write it
    web, grpc = (f"ipv6:{ports.host}", f"[{ports.host}]") if is_6 else (ports.host, ports.host)
    told = (("http", web, ports.http), ("grpc", grpc, ports.grpc), ("metrics", web, ports.metrics))
    return [
        f"--{name}-{what}"
        for name, address, port in told
        for what in (f"address={address}", f"port={port}")
    ]


def control(repository: Path, options: ServeOptions) -> list[str]:
    """The server's flags for how it follows changes, and how it reads configurations.

    Auto-completion costs a second per model and is left out where every configuration is whole.
    """
    flags = {
        "none": ["--model-control-mode=none"],
        "poll": ["--model-control-mode=poll", "--repository-poll-secs=1"],
        "explicit": ["--model-control-mode=explicit", "--load-model=*"],
    }[options.control]
    return [*flags, "--disable-auto-complete-config"] if fully_described(repository) else flags


def run_folder() -> Path:
    """A new folder for one server's log and links, at a path the server can bear.

    Where the cache cannot be written it is among the temporary ones: a runtime folder that was
    built before is enough to serve.
    """
    base = cache_folder().absolute() / "servers"
    if not is_safe(base) or not _is_writable(base):
        return Path(tempfile.mkdtemp(dir="/tmp", prefix="tlexport-"))
    for old in base.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another server has just removed its own
            if time.time() - old.stat().st_mtime > KEPT_LOGS_S:
                shutil.rmtree(old, ignore_errors=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(tempfile.mkdtemp(dir=base, prefix=f"{stamp}-{os.getpid()}-"))


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def is_safe(path: Path) -> bool:
    """Whether the server, which hands paths unquoted to a shell, can bear this one."""
    return re.fullmatch(r"[A-Za-z0-9_./-]+", str(path)) is not None


def _safe(path: Path, link: Path) -> Path:
    if is_safe(path):
        return path
    link.symlink_to(path, target_is_directory=True)
    return link


def _quiet() -> list[str]:
    """Flags that keep a machine without a GPU from complaining of it."""
    if Path("/proc/driver/nvidia").exists():
        return []
    return ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]


def _sweep_regions() -> None:
    """Remove what servers of dead processes left (they and their supervisors both killed)."""
    for region in SHM.glob("tlexport_*"):
        owner = re.match(r"tlexport_(\d+)_\d+_", region.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            end_strays(owner[0], SHM)
