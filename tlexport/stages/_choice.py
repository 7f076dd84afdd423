"""Which compared network is chosen, and how to train it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tlexport.errors import OptionError
from tlexport.options import Entry, SelectOptions
from tlexport.reports import SelectReport, SelectRow
from tlexport.stages._output import model_name


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The row that the rule picks; where there is none, `nearest` tells who comes closest."""

    rule: str
    row: SelectRow | None
    nearest: str = ""
    notes: tuple[str, ...] = ()


def choose(rows: Sequence[SelectRow], options: SelectOptions) -> Choice:
    """Apply the limits; among equals the faster one.

    With --min-accuracy alone the fastest that reaches it, else the most accurate of those left.
    """
    most_ms, least = options.max_latency_ms, options.min_accuracy
    fast = [row for row in rows if most_ms is None or row.p50_ms.value <= most_ms]
    right = [row for row in rows if least is None or row.accuracy.value >= least]
    both = [row for row in fast if row in right]
    rule = _rule(options)
    if not both:
        return Choice(rule=rule, row=None, nearest=_nearest(rows, fast, right))
    if least is not None and most_ms is None:
        row = min(both, key=lambda each: (each.p50_ms.value, -each.accuracy.value))
    else:
        row = min(both, key=lambda each: (-each.accuracy.value, each.p50_ms.value))
    return Choice(rule=rule, row=row, notes=_close(row, options))


def hold(report: SelectReport, options: SelectOptions) -> None:
    """Refuse a comparison in which nobody holds the limits.

    Raises:
        OptionError: nobody does; it tells who comes closest.
    """
    if report.chosen:
        return
    raise OptionError(
        report.rule,
        got=f"none of {len(report.rows)} networks; nearest: {report.nearest}",
        fix="loosen --max-latency-ms or --min-accuracy, try other networks with --backbone, or "
        "time them on another --runtime",
    )


def command(entry: Entry, data: Path, options: SelectOptions) -> str:
    """The command line that trains a network, quoted for a shell."""
    words = ["tlexport", "train", str(data), "-o", str(_bundle(data)), "--task", options.task]
    words += ["--backbone", entry.backbone]
    if entry.weights is not None:
        words += ["--weights", entry.weights]
    numbers = {"--max-length": options.max_length, "--max-seconds": options.max_seconds}
    numbers["--seed"] = options.seed
    for flag, number in numbers.items():
        words += [flag, f"{number:.12g}"] if number else []
    columns = {"--text-column": options.data.text_column}
    columns["--label-column"] = options.data.label_column
    for flag, column in columns.items():
        words += [flag, column] if column is not None else []
    return shlex.join([*words, *(["--skip-broken"] if options.skip_broken else [])])


def _bundle(data: Path) -> Path:
    """A bundle called as the data, here; beside them where this folder is among them."""
    whole = data.resolve()
    name = Path(f"{model_name(whole.with_suffix('') if whole.is_file() else whole)}.bundle")
    return whole.parent / name if name.resolve().is_relative_to(whole) else name


def _rule(options: SelectOptions) -> str:
    most_ms, least = options.max_latency_ms, options.min_accuracy
    within = "" if most_ms is None else f" within {most_ms:g} ms (median at batch 1)"
    if least is None:
        return f"the most accurate{within}"
    if most_ms is None:
        return f"the fastest that is right in {least:.1%}"
    return f"the most accurate{within} that is right in {least:.1%}"


def _nearest(
    rows: Sequence[SelectRow], fast: Sequence[SelectRow], right: Sequence[SelectRow]
) -> str:
    """Of those that are right enough the fastest, and of those fast enough the most accurate."""
    quickest = min(right or rows, key=lambda row: row.p50_ms.value)
    surest = max(fast or rows, key=lambda row: row.accuracy.value)
    named = {row.backbone: row for row in (quickest, surest)}
    if not (fast and right):
        named = {row.backbone: row for row in ([surest] if fast else [quickest])}
    return "; ".join(
        f"{name} with {row.p50_ms.value:.3g} ms and {row.accuracy.value:.1%}"
        for name, row in named.items()
    )


def _close(row: SelectRow, options: SelectOptions) -> tuple[str, ...]:
    """What of the limits the chosen one holds by less than is known of it."""
    notes = []
    most_ms, least = options.max_latency_ms, options.min_accuracy
    if most_ms is not None and row.p50_ms.high > most_ms:
        notes.append(
            f"the median of {row.backbone} may lie above the limit: {row.p50_ms.low:.3g} .. "
            f"{row.p50_ms.high:.3g} ms"
        )
    if least is not None and row.accuracy.low < least:
        notes.append(
            f"the accuracy of {row.backbone} may lie below the limit: {row.accuracy.low:.1%} .. "
            f"{row.accuracy.high:.1%}"
        )
    return tuple(notes)
