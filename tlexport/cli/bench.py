"""`tlexport bench`: what each way of running it costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlexport.cli._flags import Flagged, as_json, flags, record
from tlexport.errors import OptionError, UnstableError
from tlexport.options import BenchOptions, RuntimeOptions

if TYPE_CHECKING:
    from tlexport.reports import BenchReport, BenchRow

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Flagged)
@click.argument("bundle", type=click.Path(path_type=Path))
@flags(BenchOptions)
@flags(RuntimeOptions)
@click.option("--report", "page", type=FILE, help="Write a page for people: one HTML file.")
@click.option("--against", type=FILE, help="An earlier report (--json) to be held against.")
@click.option(
    "--max-regression",
    default="10%",
    show_default=True,
    help="How much slower than --against it may be.",
)
@as_json
def command(
    bundle: Path,
    as_json: bool,
    page: Path | None,
    against: Path | None,
    max_regression: str,
    **values: Any,
) -> None:
    """Measure runtimes side by side on the golden samples.

    Exits with 4 where a measurement did not settle (the last three windows are
    not within 10 %), and with 12 where it is slower than --against allows; the
    report is printed, and kept in BUNDLE/reports, all the same.

    \b
    Example:
      tlexport bench demo/digits.bundle --runtime eager@cpu --runtime ort@cpu \\
        --runtime triton@localhost:8001 --batch 1 --batch 8
      tlexport bench demo/digits.bundle --runtime triton@localhost:8001 \\
        --concurrency 1 --concurrency 8 --report bench.html
      tlexport bench demo/digits.bundle --runtime ort@cpu --batch 1 \\
        --scenario server --find-max-rate --slo p99=20ms
      tlexport bench demo/digits.bundle --json > old.json
      tlexport bench demo/digits.bundle --against old.json --max-regression 10%
    """
    from tlexport.cli import _bench_tables, _terminal
    from tlexport.pages import bench as bench_page
    from tlexport.pages import hold_place
    from tlexport.stages import against as earlier_report
    from tlexport.stages.bench import bench

    options, runtime = record(BenchOptions, values), record(RuntimeOptions, values)
    allowed = _share(max_regression)
    earlier = earlier_report.read(against) if against is not None else None
    if page is not None:
        hold_place(page)
    with _terminal.progress() as tell:
        report = bench(bundle, options, runtime, progress=tell)
    if page is not None:
        bench_page.write(report, page, ["tlexport", *sys.argv[1:]])
    _terminal.show(report, as_json, _bench_tables.draw)
    if earlier is not None:
        earlier_report.hold(report, earlier, allowed)
    if report.unstable:
        raise unsettled(report.unstable[0])


def unsettled(row: BenchRow) -> UnstableError:
    """The error for a report with a row that is not stable."""
    assert row.steadiness is not None
    latency = row.steadiness.latency
    also = "" if latency is None else f" and {_percent(latency)} in median latency"
    return UnstableError(
        "the last three windows within 10 % in rate and latency",
        got=f"{row.runtime}, batch {row.batch}: {_percent(row.steadiness.rate)} in rate{also}",
        fix="leave the machine alone while it measures, or give it more: --rounds, --round-s",
    )


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share < 100 else "without bound"


def _share(text: str) -> float:
    """A share, written 10% or 0.1.

    Raises:
        OptionError: it is no share of 0 to 100 %.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise OptionError(
            "a share such as 10% or 0.1",
            got=f"--max-regression {text}",
            fix="write it with a percent sign",
        )
    return share


def draw(report: BenchReport, console: Any) -> None:
    """The report as tables."""
    from tlexport.cli import _bench_tables

    _bench_tables.draw(report, console)
