"""Deploys in a row while clients ask: no request fails.

    python tests/benchmarks/deploy_under_load.py [--deploys 100] [--clients 4]

Two tiny models take turns on an embedded server with explicit control; half of the clients ask over
gRPC, half over HTTP, without naming a version. An answer counts as right when it is that of the
version which the answer names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import bundles
from serving.traffic import Traffic

from tlexport.options import DeployOptions, ServeOptions
from tlexport.serving import choice
from tlexport.stages.deploy import deploy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deploys", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), told.deploys, told.clients)


def run(folder: Path, deploys: int, clients: int) -> None:
    pair = [bundles.make(folder / f"{seed}.bundle", seed=seed) for seed in range(2)]
    place = folder / "models"
    place.mkdir()
    server, _ = choice.start("embedded", place, ServeOptions(control="explicit"))
    options = DeployOptions(server=server.grpc, keep_on_disk=3)
    golden = [bundles.answers(bundles.images(1), seed) for seed in range(2)]

    def right(version: int, answer: np.ndarray) -> bool:
        return np.allclose(answer, golden[version % 2], atol=1e-5)

    try:
        deploy(pair[1], place, options)
        spent, failed = [], 0
        with Traffic(server.grpc, server.http, bundles.images(1), right, clients) as traffic:
            for number in range(2, deploys + 2):
                began = time.perf_counter()
                failed += not deploy(pair[number % 2], place, options).passed
                spent.append(time.perf_counter() - began)
    finally:
        server.stop()
    rows = {
        "deploys": deploys,
        "deploys that failed": failed,
        "seconds per deploy, median": f"{np.median(spent):.2f}",
        "clients": clients,
        "requests": traffic.asked,
        "requests that failed": len(traffic.failures),
        "versions that answered": len(traffic.versions),
        "longest gap between two answers, ms": f"{1e3 * traffic.longest_gap_s:.0f}",
    }
    for name, value in rows.items():
        print(f"{name:38} {value}")
    for failure in sorted(set(traffic.failures))[:5]:
        print("failure:", failure)
    sys.exit(bool(failed or traffic.failures))


if __name__ == "__main__":
    main()
