"""237 real photos in 10 classes, from Debian's tuxpaint stamps (GPL-2: used, never committed)."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGE = "tuxpaint-stamps-default"
VERSION = "2022.06.04-1"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
CLASSES = {
    "mammal": ("animals/mammals", "animals/marsupials"),
    "bird": ("animals/birds",),
    "fruit": ("food/fruit",),
    "flower": ("plants/flowers",),
    "vehicle": ("vehicles",),
    "vegetable": ("food/vegetables",),
    "sea": ("animals/fish", "animals/shellfish"),
    "tool": ("household/tools",),
    "instrument": ("hobbies/music",),
    "insect": ("animals/insects",),
}
PLACE = Path(__file__).parent / ".data" / "photos"


def fetch(place: Path = PLACE) -> Path:
    """Download and unpack the photos once; needs a Debian with its package lists up to date.

    Raises:
        OSError, subprocess.CalledProcessError: there is no apt-get or dpkg-deb, or no network.
        ValueError: the package is another than the one this was written for.
    """
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        command = ["apt-get", "download", "-qq", f"{PACKAGE}={VERSION}"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("*.deb")
        if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{PACKAGE} {VERSION} is not the file this was written for")
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
        stamps = folder / "root" / "usr" / "share" / "tuxpaint" / "stamps"
        for label, sources in CLASSES.items():
            target = folder / "photos" / label
            target.mkdir(parents=True)
            for source in sources:
                for path in sorted((stamps / source).rglob("*.png")):
                    if "cartoon" not in str(path.relative_to(stamps)):
                        shutil.copyfile(path, target / path.name)
        (folder / "photos").rename(place)
    return place


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, nargs="?", default=PLACE)
    print(fetch(parser.parse_args().place))
