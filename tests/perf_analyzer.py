"""NVIDIA's perf_analyzer: unpacked from a wheel, with the libraries it wants, never installed.

tritonclient's wheels held it until 2.60; 2.51 is the last that a C library of 2.36 can run.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PACKAGES = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
DATA = Path(__file__).parent / ".data" / "perf_analyzer-2.51.0"
FILES = ("bin/perf_analyzer", "nvidia/cuda_runtime/lib/libcudart.so.12")


def fetch() -> Path:
    """The program, its libraries beside it; needs a Debian with its package lists up to date."""
    if not DATA.is_dir():
        DATA.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DATA.parent) as name:
            folder = Path(name)
            folder.chmod(0o755)
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*install, "--target", folder / "pip", *PACKAGES], check=True)
            command = ["apt-get", "download", "-qq", "libb64-0d"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            (package,) = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
            whole = folder / "whole"
            whole.mkdir()
            for file in FILES:
                (folder / "pip" / file).rename(whole / Path(file).name)
            (library,) = folder.glob("root/usr/lib/*/libb64.so.0d")
            (whole / library.name).write_bytes(library.read_bytes())
            whole.rename(DATA)
    return DATA / "perf_analyzer"


def questions(inputs: Mapping[str, np.ndarray], file: Path) -> Path:
    """Write rows of inputs, [batch, ...] each, as the questions it asks in turn."""
    count = len(next(iter(inputs.values())))
    rows = [
        {
            name: {
                "content": {"b64": base64.b64encode(array[row].tobytes()).decode()},
                "shape": list(array.shape[1:]),
            }
            for name, array in inputs.items()
        }
        for row in range(count)
    ]
    file.write_text(json.dumps({"data": rows}))
    return file


def asked(
    address: str, model: str, questions: Path, requests: int, concurrency: int
) -> tuple[np.ndarray, float]:
    """Let it keep `concurrency` requests in flight over gRPC until `requests` were answered.

    Their latencies in seconds, [requests], and the seconds from the first sent to the last
    answered.

    Raises:
        RuntimeError: it failed, with what it printed.
    """
    program = fetch()
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "profile.json"
        command = [program, "-m", model, "-u", address, "-i", "grpc", "-b", "1"]
        command += ["--input-data", questions, "--concurrency-range", str(concurrency)]
        command += ["--request-count", str(requests), "--profile-export-file", found]
        told = subprocess.run(
            [str(part) for part in command],
            env={**os.environ, "LD_LIBRARY_PATH": str(program.parent)},
            cwd=name,
            capture_output=True,
            text=True,
        )
        if told.returncode or not found.is_file():
            raise RuntimeError(told.stdout + told.stderr)
        (experiment,) = json.loads(found.read_text())["experiments"]
    sent = np.array([each["timestamp"] for each in experiment["requests"]], float)
    ended = np.array([each["response_timestamps"][-1] for each in experiment["requests"]], float)
    return (ended - sent) * 1e-9, float(ended.max() - sent.min()) * 1e-9


if __name__ == "__main__":
    print(fetch(), file=sys.stderr)
