"""A real Azure Blob API: Microsoft's Azurite, from npm.

`python tests/azurite.py` installs it ahead of the tests.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

PACKAGE = "azurite@3.35.0"
DATA = Path(__file__).parent / ".data" / "azurite-3.35.0"
ACCOUNT, CONTAINER = "devstoreaccount1", "models"
KEY = (  # the one that every Azurite has
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
ENVIRONMENT = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}


def fetch() -> Path:
    """The program `azurite-blob`, installed once; needs npm and a network.

    Raises:
        OSError, subprocess.CalledProcessError: one of them is not there.
    """
    if not DATA.is_dir():
        DATA.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DATA.parent) as name:
            install = ["npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGE]
            (Path(name) / "whole").mkdir()
            subprocess.run(install, cwd=f"{name}/whole", check=True, capture_output=True)
            (Path(name) / "whole").rename(DATA)
    return DATA / "node_modules" / ".bin" / "azurite-blob"


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """A server with the container `models`, all in memory; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    command = [fetch(), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    command += ["--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    quiet = subprocess.DEVNULL
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=folder) as process,
    ):
        try:
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(_creation(address), timeout=5)
                    break
                assert process.poll() is None and time.monotonic() < end, "Azurite does not start"
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def _creation(address: str) -> urllib.request.Request:
    """The signed request for a new container.

    Source: "Authorize with Shared Key", Azure Storage's REST reference.
    """
    date, version = formatdate(usegmt=True), "2021-08-06"
    headers = {"x-ms-date": date, "x-ms-version": version}
    told = "".join(f"{name}:{value}\n" for name, value in headers.items())
    place = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    asked = "PUT" + 12 * "\n" + told + place
    signed = hmac.digest(base64.b64decode(KEY), asked.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
    url = f"{address}/{CONTAINER}?restype=container"
    return urllib.request.Request(url, method="PUT", headers={**headers, "Content-Length": "0"})


if __name__ == "__main__":
    print(fetch(), file=sys.stderr)
