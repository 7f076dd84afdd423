"""Real, human-rated snippets of text: movie reviews, product reviews, tweets.

They come with the source package vaderSentiment (MIT): Hutto & Gilbert, "VADER" (ICWSM 2014).
`python tests/snippets.py` fetches them ahead of the tests.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
DATA = Path(__file__).parent / ".data" / "snippets"
FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
DECIDED = 1.0
"""Mean ratings go from -4 to 4; nearer to 0 the raters themselves did not decide."""


def fetch() -> Path:
    """The folder of the rated snippets, downloaded once."""
    if all((DATA / name).is_file() for name in FILES.values()):
        return DATA
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        download += ["--no-build-isolation", "--no-binary", "vaderSentiment", PACKAGE, "-d", folder]
        subprocess.run(download, check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
        with tarfile.open(archive) as outer:
            (name,) = [n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz")]
            with tarfile.open(fileobj=outer.extractfile(name)) as inner:
                for wanted in FILES.values():
                    (member,) = [m for m in inner.getmembers() if Path(m.name).name == wanted]
                    content = inner.extractfile(member).read()
                    DATA.mkdir(parents=True, exist_ok=True)
                    half = DATA / f".{wanted}.{os.getpid()}"
                    half.write_bytes(content)
                    half.rename(DATA / wanted)
    return DATA


def rows(source: str, limit: int, seed: int = 0) -> list[tuple[str, str]]:
    """At most `limit` (text, label) of "movie", "amazon" or "tweets", as many neg as pos."""
    rated = []
    for line in (fetch() / FILES[source]).read_text("utf-8", errors="replace").splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= DECIDED:
            rated.append((text, "pos" if float(score) > 0 else "neg"))
    random.Random(seed).shuffle(rated)
    by_label = {name: [row for row in rated if row[1] == name] for name in ("neg", "pos")}
    each = min(limit // 2, *map(len, by_label.values()))
    kept = by_label["neg"][:each] + by_label["pos"][:each]
    random.Random(seed).shuffle(kept)
    return kept


def write(path: Path, source: str, limit: int = 2000, seed: int = 0) -> Path:
    """A CSV with the columns text and label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["text", "label"])
        table.writerows(rows(source, limit, seed))
    return path


if __name__ == "__main__":
    print(fetch())
