"""A real S3 API: the server of moto, in an environment of its own.

Its libraries want other versions than those that are tested together here. `python tests/s3.py`
installs it ahead of the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "moto[server]==5.2.5"
DATA = Path(__file__).parent / ".data" / "moto-5.2.5"
BUCKET = "models"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}


def fetch() -> Path:
    """The program `moto_server`, installed once."""
    program = DATA / "bin" / "moto_server"
    if not (DATA / "whole").is_file():
        shutil.rmtree(DATA, ignore_errors=True)
        venv.create(DATA, with_pip=True)
        install = [DATA / "bin" / "python", "-m", "pip", "install", "--quiet", PACKAGE]
        subprocess.run(install, check=True, capture_output=True)
        (DATA / "whole").touch()
    return program


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """A server with the bucket `models`; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [fetch(), "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    environ = {**os.environ, "PYTHONPATH": "", "MOTO_S3_DEFAULT_MAX_KEYS": "1000"}
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environ) as process:
        try:
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    make = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
                    urllib.request.urlopen(make, timeout=5)
                    break
                assert process.poll() is None and time.monotonic() < end, "moto does not start"
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


if __name__ == "__main__":
    print(fetch(), file=sys.stderr)
