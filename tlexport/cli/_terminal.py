"""What people see: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tlexport.progress import Progress

Report = TypeVar("Report", bound=msgspec.Struct)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr, one per kind of work; nothing at all where stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def tell(what: str, done: int, total: int | None = None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def show(report: Report, as_json: bool, draw: Callable[[Report, Console], None]) -> None:
    """Print a report: as JSON alone on stdout, or as `draw` puts it for people."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
        return
    draw(report, out())


def out() -> Console:
    """The console for results: lines are wrapped only where a person reads them."""
    read = sys.stdout is not None and sys.stdout.isatty()  # None where the shell closed it
    return Console(file=sys.stdout, highlight=False, soft_wrap=not read)
