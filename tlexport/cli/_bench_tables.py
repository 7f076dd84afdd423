"""A bench report as tables for a terminal."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlexport.reports import BenchReport, BenchRow, Interval

WIDE = 79
"""Columns of a line below the tables."""
NAME = 22
"""Longest runtime written in one line: triton@127.0.0.1:45678."""
ALARM = 0.05
"""A client that takes more of the latency than this is a part of what is measured."""


def draw(report: BenchReport, console: Console) -> None:
    """One table per batch size and load; what needs a word stands below."""
    console.print(
        f"{escape(report.model)}: {report.load}, {report.threads} threads, "
        f"{report.rounds} {'rounds' if report.scenario == 'closed-loop' else 'windows'} of "
        f"{report.round_s:g} s"
    )
    console.print(f"ranges are 95 % intervals; {_speed_is(report)}", markup=False)
    if report.transfer:
        console.print(report.transfer, markup=False)
    for key in dict.fromkeys(map(_key, report.rows)):
        rows = [row for row in report.rows if _key(row) == key]
        console.print()
        console.print(_table(_title(report, rows[0]), rows))
    for note in _notes(report):
        console.print(escape(note))


def _key(row: BenchRow) -> tuple[int, int, float | None]:
    return row.batch, row.concurrency, None if row.searched else row.rate_per_s


def _speed_is(report: BenchReport) -> str:
    if report.scenario == "server" and not any(row.searched for row in report.rows):
        return "speed is the first row's p50 over this one's"
    return "speed is relative to the first row"


def _title(report: BenchReport, row: BenchRow) -> str:
    told = f"batch {row.batch}"
    if row.rate_per_s is not None and not row.searched:
        return f"{told}, {row.rate_per_s:g} requests per second"
    several = len({each.concurrency for each in report.rows}) > 1
    return f"{told}, {row.concurrency} in flight" if several else told


def _table(title: str, rows: list[BenchRow]) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("runtime", overflow="fold")
    for name in ("p50 ms", "p90", "p95", "p99", "items/s", "speed"):
        table.add_column(name, justify="right")
    for row in rows:
        tails = (row.p90_ms, row.p95_ms, row.p99_ms)
        name = row.runtime if len(row.runtime) <= NAME else row.runtime.replace("@", "@\n", 1)
        cells = [name, bounded(row.p50_ms)]
        cells += ["-" if tail is None else _three(tail.value) for tail in tails]
        cells += [bounded(row.items_per_s), _speed(row, first=row is rows[0])]
        table.add_row(*map(escape, cells))
    return table


def _speed(row: BenchRow, *, first: bool) -> str:
    if first:
        return "1"
    told = f"{row.speedup.value:.2f}x\n{row.speedup.low:.2f}-{row.speedup.high:.2f}"
    return told if row.different else told + " ="


def bounded(found: Interval | None) -> str:
    """The estimate, its interval below it."""
    if found is None:
        return "-"
    return f"{_three(found.value)}\n{_three(found.low)}-{_three(found.high)}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(report: BenchReport) -> list[str]:
    notes = []
    firsts = {_key(row): row for row in reversed(report.rows)}
    if any(not row.different for row in report.rows if firsts[_key(row)] is not row):
        notes.append("=  no significant difference from the first row")
    if any(row.p99_ms is None for row in report.rows):
        notes.append("-  too few requests: p50 needs 6, p90 36, p95 72, p99 368")
    for row in report.rows:
        if told := [*_findings(row, report), *_facts(row)]:
            notes.append(f"{_where(report, row)}:")
            for each in told:
                notes += textwrap.wrap(each, WIDE, initial_indent="  ", subsequent_indent="    ")
    most = max(report.rows, key=lambda row: row.overhead)
    if most.spent is not None and most.overhead <= ALARM:
        notes.append(
            f"asking itself takes at most {most.overhead:.2%} of what is measured, "
            f"{most.spent.client_ms:.2g} ms"
        )
    return ["", *notes] if notes else []


def _where(report: BenchReport, row: BenchRow) -> str:
    return f"{row.runtime}, {_title(report, row)}"


def _findings(row: BenchRow, report: BenchReport) -> list[str]:
    """What is wrong or was judged."""
    found = []
    known = {sha for name, sha in report.digests.items() if name not in ("weights", "golden")}
    served = row.facts.get("artifact_sha256")
    if served and known and served not in known:
        found.append(f"ANOTHER MODEL, its file is {served[:12]}, not this bundle's")
    if row.searched:
        found.append(_search(row, report.slo))
    if row.verdict is not None:
        why = f": {'; '.join(row.verdict.reasons)}" if row.verdict.reasons else ""
        found.append(f"LoadGen says {'VALID' if row.verdict.valid else 'INVALID'}{why}")
    if row.errors:
        found.append(
            f"{row.errors} requests failed, {row.requests} were answered"
            + (f"; the first: {row.first_error}" if row.first_error else "")
        )
    steady = row.steadiness
    if steady is not None and not steady.stable:
        spread = max(steady.rate, steady.latency or 0.0)
        told = f"{spread:.0%}" if spread < 100 else "more than can be told"
        found.append(f"NOT STABLE, its last three windows differ by {told}")
    if row.overhead > ALARM:
        found.append(f"THE CLIENT takes {row.overhead:.0%} of what is measured (alarm at 5 %)")
    return found


def _search(row: BenchRow, slo: str) -> str:
    tried = [trial.rate_per_s for trial in row.searched]
    if not any(trial.kept for trial in row.searched):
        return f"NO RATE of {len(tried)} keeps {slo}, down to {_three(min(tried))} per second"
    rate = _three(row.rate_per_s or 0.0)
    return f"{rate} per second is the highest rate that keeps {slo}, of {len(tried)} tried"


def _facts(row: BenchRow) -> list[str]:
    """Where the time went."""
    told = []
    if row.queue_ms is not None and row.compute_ms is not None:
        told.append(
            f"by its own statistics {row.queue_ms:.2f} ms in the queue and "
            f"{row.compute_ms:.2f} ms computing per request"
        )
    if row.clients and row.spent is not None:
        told.append(
            f"asked by {row.clients} {'process' if row.clients == 1 else 'processes'}, "
            f"{row.spent.client_ms:.2g} ms each time"
        )
    if "precision" in row.facts:
        told.append(f"computes in {row.facts['precision']}")
    return told
