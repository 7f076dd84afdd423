"""A real Prometheus and its promtool, from Debian's package: unpacked, never installed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

PLACE = Path(__file__).parent / ".data" / "prometheus"


def fetch(place: Path = PLACE) -> Path:
    """The folder with both programs; needs a Debian with its package lists up to date.

    Raises:
        OSError, subprocess.CalledProcessError: there is no apt-get or dpkg-deb, or no network.
    """
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = ["apt-get", "download", "-qq", "prometheus"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
        (folder / "root" / "usr" / "bin").rename(place)
    return place


if __name__ == "__main__":
    print(fetch())
