"""What `tlexport bench` measures of a server beside what NVIDIA's perf_analyzer measures of it.

ResNet-18 on the embedded server, asked over gRPC by our client processes and by perf_analyzer (a
C++ client), in turns and at the same number in flight, with the same images. In every round both
make as many requests. The target: the p50 of both within 5 %. In-process ONNX Runtime takes its
turn too, which tells how much of what a server adds is the client's. Run it on an idle machine with

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/against_perf_analyzer.py [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import perf_analyzer
from serving_resnet50 import prepared

from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.measure.stats import percentiles
from tlexport.options import RuntimeOptions
from tlexport.reports import Interval
from tlexport.stages.serve import serve
from tlexport.traffic.clients import Order, client

CONCURRENCY = (1, 4, 8)
INSIDE, OURS, THEIRS = "ONNX Runtime in process", "tlexport bench", "perf_analyzer"
WITHIN = 0.05
DRAWS = 2000
SETTLE_S = 0.2

Turn = tuple[np.ndarray, float]
"""Latencies in seconds, [requests], and the seconds it lasted."""


@dataclass
class Measured:
    """What one of them found, a turn a round."""

    name: str
    turns: list[Turn] = field(default_factory=list)

    def p50(self) -> Interval:
        """Milliseconds."""
        rounds = [1e3 * latencies_s for latencies_s, _ in self.turns]
        (found,) = percentiles(rounds, (0.5,), np.random.default_rng(0))
        assert found is not None
        return found

    def per_s(self) -> float:
        """Requests."""
        return sum(len(turn[0]) for turn in self.turns) / sum(turn[1] for turn in self.turns)


def compared(
    turns: dict[str, Callable[[int], Turn]], rounds: int, expected: int
) -> dict[str, Measured]:
    """All of them in every round, in another order each time.

    A turn is told how many requests ours made last, at first how many are expected.
    """
    found = {name: Measured(name) for name in turns}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(turns)):
            time.sleep(SETTLE_S)
            found[name].turns.append(turns[name](expected))
            if name == OURS:
                expected = len(found[name].turns[-1][0])
    return found


@dataclass(frozen=True)
class Ground:
    """What stands while all are asked."""

    bundle: Path
    address: str
    model: str
    questions: Path
    rounds: int
    round_s: float

    def measured(self, concurrency: int) -> dict[str, Measured]:
        """All three at so many in flight."""
        with contextlib.ExitStack() as stack:
            return compared(
                {
                    INSIDE: self._turn(stack, "ort@cpu", concurrency),
                    OURS: self._turn(stack, f"triton@{self.address}", concurrency),
                    THEIRS: lambda count: perf_analyzer.asked(
                        self.address, self.model, self.questions, count, concurrency
                    ),
                },
                self.rounds,
                expected=int(20 * self.round_s),
            )

    def _turn(
        self, stack: contextlib.ExitStack, runtime: str, concurrency: int
    ) -> Callable[[int], Turn]:
        budget = RuntimeOptions(threads=cores(), instances=1)
        order = Order(runtime=runtime, bundle=str(self.bundle), options=budget, batches=(1,))
        asker = client(Bundle(self.bundle), order, 1, concurrency)
        stack.callback(asker.close)
        asker.warm_up(1, 20, concurrency)

        def turn(_: int) -> Turn:
            load = asker.closed_loop(1, self.round_s, concurrency)
            assert not load.errors, load.first_error
            return load.latencies_s, load.busy_s

        return turn


def shown(found: Interval) -> str:
    """A figure with its 95 % interval over the rounds."""
    return f"{found.value:.2f} ({found.low:.2f} .. {found.high:.2f})"


def main() -> None:
    """Ask, print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--concurrency", type=int, action="append", help="default: 1, 4 and 8")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--round-s", type=float, default=3.0)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("in flight", "measured by", "p50 ms", "per s", "requests"):
        table.add_column(title, justify="left" if title == "measured by" else "right")
    verdicts = []
    with tempfile.TemporaryDirectory() as name:
        bundle, repository = prepared(Path(name), arguments.backbone)
        golden = Bundle(bundle).golden().inputs
        questions = perf_analyzer.questions(golden, Path(name) / "questions.json")
        with serve(repository) as serving:
            (model,) = (served.name for served in serving.report.models)
            ground = Ground(
                bundle=bundle,
                address=serving.report.grpc,
                model=model,
                questions=questions,
                rounds=arguments.rounds,
                round_s=arguments.round_s,
            )
            for concurrency in arguments.concurrency or CONCURRENCY:
                found = ground.measured(concurrency)
                for each in found.values():
                    requests = sum(len(latencies_s) for latencies_s, _ in each.turns)
                    told = (shown(each.p50()), f"{each.per_s():.1f}", str(requests))
                    table.add_row(str(concurrency), each.name, *told)
                verdicts.append(verdict(found, concurrency))
    console.print(table)
    for line in verdicts:
        console.print(line)


def relative(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """The median over the rounds of one over the other, with its 95 % interval by bootstrap."""
    drawn = np.random.default_rng(0).integers(len(ours), size=(DRAWS, len(ours)))
    medians = np.median((ours / theirs)[drawn], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Interval(value=float(np.median(ours / theirs)), low=float(low), high=float(high))


def verdict(found: dict[str, Measured], concurrency: int) -> str:
    """Whether the two agree, and what each finds above in-process."""
    p50 = {
        name: np.array([float(np.median(turn[0])) for turn in each.turns])
        for name, each in found.items()
    }
    apart = relative(p50[OURS], p50[THEIRS])
    settled = max(abs(apart.low - 1), abs(apart.high - 1)) <= WITHIN
    missed = max(apart.low - 1, 1 - apart.high) > WITHIN
    told = "reached" if settled else "MISSED" if missed else "not settled"
    above = {name: 1e3 * float(np.median(each - p50[INSIDE])) for name, each in p50.items()}
    return (
        f"{concurrency} in flight: p50 of ours / perf_analyzer's {shown(apart)}, "
        f"within {WITHIN:.0%} {told}; above in-process {above[OURS]:.2f} ms by ours, "
        f"{above[THEIRS]:.2f} ms by perf_analyzer"
    )


if __name__ == "__main__":
    main()
