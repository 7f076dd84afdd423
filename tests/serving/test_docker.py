"""The Docker road, with a program called `docker` that starts the embedded server instead."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from serving import bundles

from tlexport.errors import ServerError
from tlexport.options import ServeOptions
from tlexport.serving import choice, docker, embedded
from tlexport.serving.releases import releases
from tlexport.serving.runtime_folder import runtime_folder
from tlexport.serving.server import Ports
from tlexport.stages.package import package
from tlexport.stages.serve import serve

FAKE = """#!{python}
import json, os, sys
with open({record!r}, "a") as stream:
    print(json.dumps(sys.argv[1:]), file=stream)
if sys.argv[1] == "run":
    ports = [text.split(":") for flag, text in zip(sys.argv, sys.argv[1:]) if flag == "-p"]
    place = next(t for flag, t in zip(sys.argv, sys.argv[1:]) if flag == "-v").split(":")[0]
    command = [{server!r}, "--model-repository=" + place, "--disable-auto-complete-config",
        "--backend-directory={backends}", "--cache-directory={caches}",
        "--backend-config=python,shm-region-prefix-name=tlexport_docker_"]
    for name, (host, port, inside) in zip(("http", "grpc", "metrics"), ports):
        command += [f"--{{name}}-address={{host}}", f"--{{name}}-port={{port}}"]
    os.execve(command[0], command, {environ!r})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put the program first in PATH; the file it writes its arguments to."""
    runtime, record = runtime_folder(), tmp_path / "asked.jsonl"
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(
        FAKE.format(
            python=sys.executable,
            record=str(record),
            server=str(runtime.server),
            backends=runtime.backends,
            caches=runtime.caches,
            environ=runtime.environ(),
        )
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return record


def asked(record: Path):
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_the_command_line_is_the_documented_one(tmp_path):
    ports = Ports(host="127.0.0.1", http=8100, grpc=8101, metrics=8102)
    package(bundles.make(tmp_path / "b.bundle"), tmp_path / "models")
    command = docker.command(tmp_path / "models", ServeOptions(image="25.08"), ports, "name")
    assert [word for word in command if word not in ("--gpus", "all")] == [
        *("docker", "run", "--rm", "--name", "name", "--shm-size=1g"),
        *("-p", "127.0.0.1:8100:8000", "-p", "127.0.0.1:8101:8001", "-p", "127.0.0.1:8102:8002"),
        *("-v", f"{tmp_path}/models:/models:ro"),
        *(f"{docker.REGISTRY}:25.08-py3", "tritonserver", "--model-repository=/models"),
        *("--model-control-mode=none", "--disable-auto-complete-config"),
    ]


@pytest.mark.parametrize(
    ("named", "image"),
    [
        ("", f"{docker.REGISTRY}:{releases()[-1].triton}-py3"),
        ("24.10", f"{docker.REGISTRY}:24.10-py3"),
        ("registry.example/triton:mine", "registry.example/triton:mine"),
    ],
)
def test_image(named, image):
    assert docker.image(named) == image


def test_a_container_serves_and_is_removed(fake, tmp_path):
    package(bundles.make(tmp_path / "b.bundle"), tmp_path / "models")
    with serve(tmp_path / "models", ServeOptions(server="docker")) as serving:
        assert serving.report.server == "docker"
        assert serving.report.models[0].golden_max_abs < 1e-5
    run, remove = asked(fake)
    name = run[run.index("--name") + 1]
    assert remove == ["rm", "--force", name]


def test_a_container_that_does_not_start_is_told_of(tmp_path, monkeypatch):
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 125\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    package(bundles.make(tmp_path / "b.bundle"), tmp_path / "models")
    with pytest.raises(ServerError, match=r"code 125: Cannot connect to the Docker daemon"):
        choice.start("docker", tmp_path / "models", ServeOptions())


def test_auto_takes_what_there_is_and_says_why(monkeypatch):
    assert choice.choose("auto")[0] == "embedded"
    assert choice.choose("docker") == ("docker", "--server docker was asked for")
    monkeypatch.setattr(embedded, "unsupported", lambda: "glibc is too old")
    monkeypatch.setattr(docker, "unsupported", lambda: None)
    assert choice.choose("auto") == ("docker", "glibc is too old")
    monkeypatch.setattr(docker, "unsupported", lambda: "no docker")
    with pytest.raises(ServerError, match="glibc is too old; no docker"):
        choice.choose("auto")


def test_without_docker(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    ports = Ports(host="127.0.0.1", http=1, grpc=2, metrics=3)
    with pytest.raises(ServerError, match="no `docker` in PATH"):
        docker.start(tmp_path, ServeOptions(), ports)
