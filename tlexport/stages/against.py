"""A measurement held against an earlier one."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tlexport.errors import OptionError, RegressionError
from tlexport.reports import BenchReport, BenchRow


def read(path: Path) -> BenchReport:
    """Read an earlier report.

    Raises:
        OptionError: there is none, or it is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchReport)
    except (OSError, msgspec.DecodeError) as error:
        raise OptionError(
            "a report of `tlexport bench --json` for --against",
            got=f"{path}: {error}",
            fix="make one with `tlexport bench BUNDLE ... --json > old.json`",
        ) from error


def hold(now: BenchReport, earlier: BenchReport, allowed: float) -> None:
    """Hold every row against its earlier self: throughput, and latency at p50 and p99.

    It is a regression where the estimate is worse by more than `allowed` (a share) and the 95 %
    intervals do not overlap: noise is none.

    Raises:
        OptionError: they were not measured alike: other hardware, threads, inputs, files, load.
        RegressionError: what got slower, and by how much.
    """
    _hold_alike(now, earlier)
    before = {_key(row): row for row in earlier.rows}
    slower = [told for row in now.rows for told in _slower(row, before[_key(row)], allowed)]
    if slower:
        raise RegressionError(
            f"nothing slower than before by more than {allowed:.0%}",
            got="; ".join(slower),
            fix="find out what changed since, or make a new report to be held against if it is "
            "meant to be so",
        )


def _key(row: BenchRow) -> tuple[str, int, int, float | None]:
    return row.runtime, row.batch, row.concurrency, None if row.searched else row.rate_per_s


def _hold_alike(now: BenchReport, earlier: BenchReport) -> None:
    pairs = {
        "CPU": (now.environment.cpu, earlier.environment.cpu),
        "cores": (now.environment.cores, earlier.environment.cores),
        "GPUs": (_cards(now), _cards(earlier)),
        "threads": (now.threads, earlier.threads),
        "instances": (now.instances, earlier.instances),
        "load": ((now.load, now.slo), (earlier.load, earlier.slo)),
        "inputs": (now.digests.get("golden"), earlier.digests.get("golden")),
        "files": (_files(now), _files(earlier)),
        "rows": (sorted(map(str, map(_key, now.rows))), sorted(map(str, map(_key, earlier.rows)))),
        "served files": (_served(now), _served(earlier)),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise OptionError(
                f"an earlier report with the same {what}",
                got=f"{theirs}, now {ours}",
                fix="measure the earlier state anew on this machine with the same options: "
                "numbers of different things tell nothing",
            )


def _cards(report: BenchReport) -> list[str]:
    return [str(gpu.get("name")) for gpu in report.gpus]


def _files(report: BenchReport) -> dict[str, str]:
    return {name: sha for name, sha in report.digests.items() if name != "golden"}


def _served(report: BenchReport) -> dict[str, object]:
    """What the runtimes themselves say they run, with their own threads."""
    names = ("artifact_sha256", "threads", "instances", "precision", "device", "providers")
    return {
        row.runtime: {name: row.facts[name] for name in names if name in row.facts}
        for row in report.rows
    }


def _slower(now: BenchRow, before: BenchRow, allowed: float) -> list[str]:
    where = f"{now.runtime}, batch {now.batch}"
    found = []
    fewer = now.items_per_s.value < before.items_per_s.value * (1 - allowed)
    if fewer and now.items_per_s.high < before.items_per_s.low:
        change = 1 - now.items_per_s.value / before.items_per_s.value
        found.append(
            f"{where}: {change:.0%} fewer items/s ({before.items_per_s.value:.4g} -> "
            f"{now.items_per_s.value:.4g})"
        )
    for name, new, old in (
        ("p50", now.p50_ms, before.p50_ms),
        ("p99", now.p99_ms, before.p99_ms),
    ):
        if new is None or old is None:
            continue
        if new.value > old.value * (1 + allowed) and new.low > old.high:
            found.append(
                f"{where}: {name} {new.value / old.value - 1:.0%} longer ({old.value:.4g} -> "
                f"{new.value:.4g} ms)"
            )
    if now.errors and not before.errors:
        found.append(f"{where}: {now.errors} requests failed, none before")
    return found
