"""The embedded server against what people write by hand: the same ResNet-18, cores and client.

FastAPI with PyTorch eager, LitServe and PyTriton with ONNX Runtime (`by_hand/`), and
`tlexport serve` in fp32 and int8, all on this machine, each asked over HTTP by the same threads
with the same image, in turns, while the processes of the others are halted. What the others need
is installed into a folder of its own. The targets at eight in flight: 1.9 times FastAPI's
throughput in fp32, 5 times in int8 (a CPU with VNNI), and p50 and p99 no worse than LitServe's and
PyTriton's. Run it on an idle machine with

    .venv/bin/python tests/benchmarks/against_hand_written.py [--rounds N] [--round-s S]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.http
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits

from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.errors import ServerError
from tlexport.measure.load import Load, closed_loop
from tlexport.measure.stats import percentiles, ratio
from tlexport.options import ExportOptions, PackageOptions, RuntimeOptions, TrainOptions
from tlexport.reports import Interval
from tlexport.stages.export import export
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.train import train
from tlexport.stages.verify import verify

FRAMEWORKS = ("fastapi", "uvicorn[standard]", "litserve")
PYTRITON = ("nvidia-pytriton==0.7.0", "numpy<2", f"onnxruntime=={onnxruntime.__version__}")
STUB = """import threading
from multiprocessing import resource_tracker
resource_tracker._resource_tracker._lock = threading._PyRLock()
"""
"""PyTriton's stub for 3.11 lacks what 3.11.7's resource tracker asks of its lock."""

READY_S = 90.0
DONE = ".installed"


@dataclass
class Rival:
    """A server, how it is asked once, and what its turns gave."""

    name: str
    port: int
    path: str
    body: bytes
    headers: dict[str, str]
    group: int | None = None
    loads: list[Load] = field(default_factory=list)

    def alone(self, others: list[Rival]) -> None:
        """Halt the processes of all others: some look for work all the time."""
        for each in (*others, self):
            if each.group is not None:
                os.killpg(each.group, signal.SIGCONT if each is self else signal.SIGSTOP)

    def asker(self) -> Callable[[], object]:
        """Asks over a connection of each thread's own."""
        mine = threading.local()

        def ask() -> int:
            if not hasattr(mine, "line"):
                mine.line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            mine.line.request("POST", self.path, self.body, self.headers)
            answer = mine.line.getresponse()
            got = answer.read()
            if answer.status != 200:
                raise ServerError("an answer", got=f"{answer.status} {got[:200]!r}", fix="look")
            return len(got)

        return ask


def installed(name: str, packages: tuple[str, ...]) -> Path:
    """Packages in an environment of their own, kept for the next run: its Python.

    With FRAMEWORKS the packages of this environment are there as well.
    """
    folder = Path(__file__).parents[1] / ".data" / name
    if not (folder / DONE).is_file():
        shared = packages == FRAMEWORKS
        venv.create(folder, clear=True, with_pip=True, system_site_packages=shared)
        site = next((folder / "lib").glob("python3*")) / "site-packages"
        if shared:  # an environment made from one sees what lies below that, not in it
            (site / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        else:
            (site / "sitecustomize.py").write_text(STUB)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *packages], check=True)
        (folder / DONE).touch()
    return folder / "bin/python"


def prepared(root: Path, queue_delay_us: int) -> tuple[Path, Path]:
    """A bundle of ResNet-18, verified in fp32 and int8, and the repository of both."""
    data, bundle = digits.write(root / "digits", per_class=8), root / "net.bundle"
    options = TrainOptions(backbone="torchvision/resnet18", weights="random", trials=1, golden=8)
    train(data, bundle, options)
    for precision in ("fp32", "int8"):
        wish = ExportOptions(precision=precision, calibration="minmax")
        artifact = export(bundle, wish).artifact
        assert verify(bundle, runtime=RuntimeOptions(artifact=artifact)).passed
        options = PackageOptions(
            name=precision,
            artifact=artifact,
            instances=1,
            threads=cores(),
            max_batch=8,
            queue_delay_us=queue_delay_us,
        )
        package(bundle, root / "models", options)
    return bundle, root / "models"


def free_port() -> int:
    """A port, and two behind it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def v2(name: str, port: int, model: str, image: np.ndarray) -> Rival:
    """A server that speaks the v2 protocol, asked in its binary form."""
    entry = tritonclient.http.InferInput("images", list(image.shape), "UINT8")
    entry.set_data_from_numpy(image)
    client = tritonclient.http.InferenceServerClient
    body, size = client.generate_request_body([entry])
    headers = {"Inference-Header-Content-Length": str(size)}
    return Rival(name, port, f"/v2/models/{model}/infer", bytes(body), headers)


@contextlib.contextmanager
def hand_written(kind: str, bundle: Path, python: Path, image: np.ndarray) -> Iterator[Rival]:
    """One of `by_hand/`, ready to be asked."""
    home, port = Bundle(bundle), free_port()
    model = home.artifact_file(home.artifact("onnx-fp32"))
    file = next((Path(__file__).parent / "by_hand").glob(f"{kind}_*.py"))
    root = str(Path(__file__).parents[2])
    command = [python, file, str(port), bundle, model]
    environ = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, env=environ, start_new_session=True) as process:
        try:
            if kind == "pytriton":
                rival = v2("PyTriton, ONNX Runtime", port, "net", image)
            else:
                told = {"fastapi": "FastAPI, PyTorch eager", "litserve": "LitServe, ONNX Runtime"}
                rival = Rival(told[kind], port, "/predict", image.tobytes(), {})
            until = time.monotonic() + READY_S
            while True:
                try:
                    rival.asker()()
                    break
                except (OSError, http.client.HTTPException, ServerError):
                    if time.monotonic() > until or process.poll() is not None:
                        raise
                    time.sleep(0.5)
            rival.group = process.pid
            yield rival
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its children as well, which may be halted


def main() -> None:
    """Ask all of them in turns, print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-s", type=float, default=3.0)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--queue-delay-us", type=int, default=4000, help="of tlexport's models")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        root = Path(name)
        bundle, repository = prepared(root, arguments.queue_delay_us)
        image = Bundle(bundle).golden().inputs["images"][:1]
        others = installed("frameworks", FRAMEWORKS)
        triton = installed("pytriton", PYTRITON)
        served = stack.enter_context(serve(repository))
        port = int(served.report.http.rpartition(":")[2])
        rivals = [
            stack.enter_context(hand_written("fastapi", bundle, others, image)),
            stack.enter_context(hand_written("litserve", bundle, others, image)),
            stack.enter_context(hand_written("pytriton", bundle, triton, image)),
            v2("tlexport serve, fp32", port, "fp32", image),
            v2("tlexport serve, int8", port, "int8", image),
        ]
        rng = np.random.default_rng(0)
        for _ in range(arguments.rounds):
            for place in rng.permutation(len(rivals)):
                rival = rivals[place]
                rival.alone(rivals)
                ask = rival.asker()
                ask()
                time.sleep(0.1)
                load = closed_loop(
                    ask, seconds=arguments.round_s, concurrency=arguments.concurrency
                )
                rival.loads.append(load)
    show(rivals, console)


def show(rivals: list[Rival], console: Console) -> None:
    """Throughput beside the first, and latencies."""
    table = Table(box=None, pad_edge=False)
    for title in ("server", "p50 ms", "p99", "per s", "x first", "failed"):
        table.add_column(title, justify="left" if title == "server" else "right")
    counts = np.array([[load.answered for load in each.loads] for each in rivals], float)
    seconds = np.array([[load.busy_s for load in each.loads] for each in rivals])
    for place, rival in enumerate(rivals):
        rounds = [1e3 * load.latencies_s for load in rival.loads]
        told = percentiles(rounds, (0.5, 0.99), np.random.default_rng(0))
        found = ratio(
            counts[place], seconds[place], counts[0] / seconds[0], np.random.default_rng(0)
        )
        table.add_row(
            rival.name,
            *("-" if each is None else shown(each, 1) for each in told),
            f"{counts[place].sum() / seconds[place].sum():.1f}",
            shown(found, 2),
            str(sum(load.errors for load in rival.loads)),
        )
    console.print(table)


def shown(found: Interval, digits: int) -> str:
    """A figure with its 95 % interval over the rounds."""
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} .. {found.high:.{digits}f})"


if __name__ == "__main__":
    main()
