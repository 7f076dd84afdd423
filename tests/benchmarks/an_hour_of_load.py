"""An hour's equivalent of load, a tenth of it malformed, against the embedded server.

50,000 requests over gRPC by as many threads as asked for. Every well-formed one must be answered
as the original answers (within 1e-4), every malformed one refused, and the memory of the server's
processes must not grow: the mean of the last tenth of the run at most 5 % above that of the
second tenth. It ends with a table and exits with 1 where one of these fails. Run it with

    .venv/bin/python tests/benchmarks/an_hour_of_load.py [--requests N] [--in-flight N]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import bundles
from serving.processes import descendants

from tlexport.options import PackageOptions
from tlexport.stages.package import package
from tlexport.stages.serve import serve

GROWTH, TOLERANCE, EVERY = 0.05, 1e-4, 10
"""Memory may grow by so much; answers may be off by so much; one in so many is malformed."""


@dataclass
class Found:
    """What came of the load; `memory_mb` is of all the server's processes, in time."""

    answered: int = 0
    wrong: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    seconds: float = 0.0
    first: str = ""

    def growth(self) -> float:
        """Memory at the end against that after the first tenth, as a share."""
        tenth = max(1, len(self.memory_mb) // 10)
        early = np.mean(self.memory_mb[tenth : 2 * tenth] or self.memory_mb[:1])
        return float(np.mean(self.memory_mb[-tenth:]) / early - 1)

    def passed(self) -> bool:
        """Whether all was answered right, all that is malformed refused, and memory flat."""
        return not (self.wrong or self.failed or self.accepted or self.growth() > GROWTH)


def well_formed(images: np.ndarray) -> list:
    entry = tritonclient.grpc.InferInput("images", list(images.shape), "UINT8")
    entry.set_data_from_numpy(images)
    return [entry]


def _typed(shape, kind, array) -> list:
    entry = tritonclient.grpc.InferInput("images", list(shape), kind)
    entry.set_data_from_numpy(array)
    return [entry]


def _short(images: np.ndarray) -> list:
    entry = tritonclient.grpc.InferInput("images", [2, *images.shape[1:]], "UINT8")
    entry._raw_content = images[:1].tobytes()
    return [entry]


def _renamed(images: np.ndarray) -> list:
    entry = tritonclient.grpc.InferInput("pictures", list(images.shape), "UINT8")
    entry.set_data_from_numpy(images)
    return [entry]


MALFORMED = {
    "another size": lambda x: well_formed(np.zeros((1, 8, 9, 3), np.uint8)),
    "another dtype": lambda x: _typed(x.shape, "FP32", x.astype(np.float32)),
    "an axis too few": lambda x: well_formed(x[0]),
    "another name": _renamed,
    "bytes missing": _short,
    "no input": lambda x: [],
    "too large a batch": lambda x: well_formed(np.repeat(x[:1], 64, axis=0)),
    "an empty batch": lambda x: well_formed(x[:0]),
}
"""What a client may get wrong: the inputs it sends in place of the images."""


def memory_mb(pids: list[int]) -> float:
    """Resident memory of all these processes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1024


def flood(address: str, pids: list[int], requests: int, in_flight: int) -> Found:
    """Send so many requests, every tenth malformed, and look at each answer."""
    images = bundles.images()
    wanted = bundles.answers(images)
    found, lock, places = Found(), threading.Lock(), itertools.count()
    kinds = list(MALFORMED)

    def work() -> None:
        client = tritonclient.grpc.InferenceServerClient(address)
        try:
            while (place := next(places)) < requests:
                if place % EVERY == EVERY - 1:
                    _malformed(client, kinds[place // EVERY % len(kinds)], images, found, lock)
                else:
                    _asked(client, place % len(images), (images, wanted), found, lock)
                if place % max(1, requests // 200) == 0:
                    found.memory_mb.append(memory_mb(pids))
        finally:
            client.close()

    threads = [threading.Thread(target=work) for _ in range(in_flight)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - began
    return found


def _asked(client, row: int, known, found: Found, lock) -> None:
    images, wanted = known
    began = time.perf_counter()
    try:
        result = client.infer("insects", well_formed(images[row : row + 1]), client_timeout=60.0)
    except InferenceServerException as error:
        with lock:
            found.failed += 1
            found.first = found.first or str(error)
        return
    took_ms = (time.perf_counter() - began) * 1e3
    answer = result.as_numpy("logits")
    right = answer.shape == (1, 3) and np.allclose(answer[0], wanted[row], atol=TOLERANCE)
    with lock:
        found.answered += 1
        found.wrong += not right
        found.latencies_ms.append(took_ms)


def _malformed(client, kind: str, images: np.ndarray, found: Found, lock) -> None:
    try:
        client.infer("insects", MALFORMED[kind](images[:1]), client_timeout=60.0)
    except InferenceServerException as error:
        timed_out = "Deadline" in str(error) or "UNAVAILABLE" in str(error.status() or "")
        with lock:
            if timed_out:
                found.failed += 1
                found.first = found.first or f"{kind}: {error}"
            else:
                found.refused[kind] += 1
        return
    with lock:
        found.accepted[kind] += 1


def loaded(requests: int, in_flight: int, folder: Path) -> Found:
    """Package a small model, serve it on the embedded server, flood it."""
    bundle = bundles.make(folder / "b.bundle")
    package(bundle, folder / "models", PackageOptions(instances=1, threads=1, max_batch=8))
    with serve(folder / "models") as serving:
        pids = descendants(os.getpid())
        return flood(serving.report.grpc, pids, requests, in_flight)


def draw(found: Found, console: Console) -> None:
    """The table and the verdict."""
    table = Table("what", "found", box=None, pad_edge=False)
    waits = np.array(found.latencies_ms)
    table.add_row("well-formed, answered", str(found.answered))
    table.add_row("answered wrong", str(found.wrong))
    table.add_row("well-formed, not answered", f"{found.failed} {found.first}")
    for kind in MALFORMED:
        told = f"{found.refused[kind]} refused, {found.accepted[kind]} accepted"
        table.add_row(f"malformed: {kind}", told)
    table.add_row(
        "requests per second", f"{(found.answered + found.refused.total()) / found.seconds:.0f}"
    )
    p50, p99, most = np.quantile(waits, (0.5, 0.99, 1.0))
    table.add_row("p50, p99, longest ms", f"{p50:.2f}, {p99:.2f}, {most:.1f}")
    low, high = min(found.memory_mb), max(found.memory_mb)
    table.add_row("server's memory MB", f"{low:.0f} .. {high:.0f}, growth {found.growth():+.1%}")
    console.print(table)
    console.print("PASSED" if found.passed() else "FAILED")


def main() -> None:
    """Load it, print the table, exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = loaded(arguments.requests, arguments.in_flight, Path(folder))
    draw(found, Console(highlight=False))
    sys.exit(0 if found.passed() else 1)


if __name__ == "__main__":
    main()
