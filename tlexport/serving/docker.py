"""NVIDIA's image of Triton, by `docker run`.

The same repository, served by the C++ backend. The container is bound to the ports asked for on
the host's address, sees the repository read-only, and is removed when it ends.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from tlexport.errors import ServerError
from tlexport.options import ServeOptions
from tlexport.serving.embedded import control, run_folder
from tlexport.serving.releases import releases
from tlexport.serving.server import Launch, Ports, Server

REGISTRY = "nvcr.io/nvidia/tritonserver"
INSIDE = Ports(host="0.0.0.0", http=8000, grpc=8001, metrics=8002)


def unsupported() -> str | None:
    """Why Docker cannot be used here, or None."""
    return None if shutil.which("docker") else "there is no `docker` in PATH"


def image(named: str) -> str:
    """The image to run: as named, the one of a release YY.MM, or the newest release's."""
    if named and not named.replace(".", "").isdigit():
        return named
    return f"{REGISTRY}:{named or releases()[-1].triton}-py3"


def command(repository: Path, options: ServeOptions, ports: Ports, name: str) -> list[str]:
    """The whole `docker run` command line."""
    published = []
    host = f"[{ports.host}]" if ":" in ports.host else ports.host
    for outside, inside in (
        (ports.http, INSIDE.http),
        (ports.grpc, INSIDE.grpc),
        (ports.metrics, INSIDE.metrics),
    ):
        published += ["-p", f"{host}:{outside}:{inside}"]
    gpus = ["--gpus", "all"] if Path("/proc/driver/nvidia").exists() else []
    return [
        *("docker", "run", "--rm", "--name", name, "--shm-size=1g", *gpus, *published),
        *("-v", f"{repository.absolute()}:/models:ro"),
        *(image(options.image), "tritonserver", "--model-repository=/models"),
        *control(repository, options),
    ]


def start(repository: Path, options: ServeOptions, ports: Ports) -> Server:
    """Start the container; it is not ready yet.

    Raises:
        ServerError: there is no Docker here.
    """
    if reason := unsupported():
        raise ServerError(
            "Docker", got=reason, fix="install Docker, or use --server embedded where it can run"
        )
    name = f"tlexport-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    launch = Launch(
        kind="docker",
        command=tuple(command(repository, options, ports, name)),
        environ=dict(os.environ),
        ports=ports,
        folder=run_folder(),
        afterwards=("docker", "rm", "--force", name),
    )
    return Server(launch)
