"""Pre-trained networks compared on the user's examples."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlexport import plugins
from tlexport.environment import cores, environment
from tlexport.errors import DataError, OptionError, TlexportError
from tlexport.files import text_of
from tlexport.measure import ranking, stats
from tlexport.options import Entry, SelectOptions
from tlexport.progress import Progress, silent
from tlexport.reports import Interval, LeftOut, SelectReport, SelectRow
from tlexport.stages._choice import choose, command
from tlexport.stages._contender import Contender, Field, contenders, readable
from tlexport.tasks import Example, Examples
from tlexport.traffic.asker import small_heap
from tlexport.traffic.cells import Cell, first_error
from tlexport.training import folds
from tlexport.training.crossing import Crossed, crossed
from tlexport.training.head import Labelled
from tlexport.training.split import split

LEAST = 2
"""Examples of each class: one to learn from when the other is held out."""

WARM_UP = 3
RANDOM = "random"
UNTRAINED = "untrained weights: its cost is measured, its accuracy says nothing of a trained one"


def select(
    data: Path | str, options: SelectOptions | None = None, *, progress: Progress = silent
) -> SelectReport:
    """Compare networks: accuracy of heads on their features against latency and size.

    Each sees each example once. Heads are fitted without a fold and asked about it, the same folds
    for all; where the user made val/, that is what is held out. Each is exported and timed at batch
    1 on the runtime, all in turns in shuffled order, `rounds` times `round_s` seconds, on a few of
    the examples. Features and files are kept in the cache: a second run finds them.

    Raises:
        OptionError: none of the networks can be had, there is no such task or runtime, or the
            examples asked for are too few.
        DataError: the examples are not usable; broken files are listed, all of them.
        MissingDependency: the runtime's library is not installed.
        BundleError: the cache cannot be written.
    """
    options = options or SelectOptions()
    began = time.perf_counter()
    task = plugins.load("tasks", options.task)
    plugins.load("runtimes", options.runtime.partition("@")[0])
    entries = options.entries(options.backbones or _usual(task, options.task))
    known = task.read(Path(data), options.data)
    examples, held_out = _drawn(known, options)
    with (
        tempfile.TemporaryDirectory(prefix="tlexport-select-") as folder,
        contextlib.ExitStack() as stack,
    ):
        field = Field(
            task=task,
            options=options,
            known=known,
            examples=examples,
            work=Path(folder),
            stack=stack,
            progress=progress,
        )
        ready, left = contenders(entries, field)
        _hold_some(ready, left)
        part = _part(field, ready, held_out)
        heads_began = time.perf_counter()
        heads = [_crossed(each, part, len(known.labels), progress) for each in ready]
        timing_began = time.perf_counter()
        _take_turns([each.cell for each in ready], options, progress)
    now = time.perf_counter()
    seconds = {
        "features": sum(each.features_s for each in ready),
        "heads": timing_began - heads_began,
        "export": sum(each.export_s for each in ready),
        "timing": now - timing_began,
        "all": now - began,
    }
    return _report(Path(data), field, Found(ready, heads, left, part, seconds))


def _usual(task: object, name: str) -> tuple[str, ...]:
    """The networks that a task tries where none are named.

    Raises:
        OptionError: it has none.
    """
    found: tuple[str, ...] = getattr(task, "CANDIDATES", ())
    if not found:
        raise OptionError(
            f"--backbone for --task {name}, which names no networks of its own",
            got="none",
            fix="pass --backbone SOURCE/NAME, once per network",
        )
    return found


def _drawn(known: Examples, options: SelectOptions) -> tuple[list[Example], int]:
    """The examples to compare on; the last of them, so many, are the user's own held-out part.

    Raises:
        OptionError: fewer are asked for than two of each class.
        DataError: a class has fewer than two different files, or is in val/ alone.
    """
    classes = len(known.labels)
    if 0 < options.examples < LEAST * classes:
        raise OptionError(
            f"--examples of at least {LEAST * classes}, {LEAST} for each of {classes} classes",
            got=f"--examples {options.examples}",
            fix=f"pass {LEAST * classes} or more, or 0 for all",
        )
    whole = len(known.train) + len(known.val)
    most = options.examples or whole
    if not known.val:
        return folds.drawn(known.train, most, LEAST, options.seed), 0
    parts = split(known, fraction=0.5, seed=options.seed)  # the user's own: nothing is drawn
    share = max(1, round(most * len(parts.val) / (len(parts.train) + len(parts.val))))
    train = folds.drawn(parts.train, max(most - share, classes), 1, options.seed)
    val = folds.drawn(parts.val, share, 1, options.seed)
    return [*train, *val], len(val)


def _hold_some(ready: Sequence[Contender], left: Sequence[tuple[Entry, TlexportError]]) -> None:
    """Refuse a comparison of none; of a single one the reason is its own.

    Raises:
        TlexportError: there is none.
    """
    if ready:
        return
    if len(left) == 1:
        raise left[0][1]
    lines = [f"{entry}: {_reason(error)}" for entry, error in left]
    raise OptionError(
        "at least one network that can be had and run",
        got=f"none of {len(left)}:\n    " + "\n    ".join(lines),
        fix="pass others with --backbone SOURCE/NAME, or weights that are here: "
        "--backbone SOURCE/NAME=WEIGHTS",
    )


def _reason(error: TlexportError) -> str:
    return " ".join(f"{error.got}; {error.fix}".split())


@dataclasses.dataclass(frozen=True)
class Part:
    """What the heads are asked: which rows every network could read, and who is held out when."""

    kept: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    skipped: tuple[str, ...]


def _part(field: Field, ready: Sequence[Contender], held_out: int) -> Part:
    """Leave out what any of them could not read, and deal the rest.

    Raises:
        DataError: too little of a class is left.
    """
    count = len(field.examples)
    broken = {row: why for each in ready for row, why in each.found.broken.items()}
    kept = readable(count, broken)
    labels = np.array([example.label for example in field.examples], dtype=np.int64)
    learnt = kept & (np.arange(count) < count - held_out)
    lost = sorted(set(range(len(field.known.labels))) - set(labels[learnt].tolist()))
    if lost or (held_out and not kept[count - held_out :].any()):
        names = ", ".join(field.known.labels[label] for label in lost)
        raise DataError(
            "readable files of each class to learn from, and some to hold out",
            got=f"none left of {names}" if lost else "none left to hold out",
            fix="mend the broken files or add others",
        )
    if held_out:
        dealt = np.where(learnt, -1, 0)[kept]
    else:
        dealt = folds.dealt(
            labels[kept], min(field.options.folds, int(kept.sum())), field.options.seed
        )
    skipped = tuple(
        f"{text_of(field.examples[row].source)}: {why}" for row, why in sorted(broken.items())
    )
    return Part(kept, labels[kept], dealt, skipped)


def _crossed(each: Contender, part: Part, classes: int, progress: Progress) -> Crossed:
    progress(f"{each.entry.backbone}: heads", 0, 1)
    found = crossed(
        Labelled(values=each.found.values[part.kept], labels=part.labels), part.folds, classes
    )
    progress(f"{each.entry.backbone}: heads", 1, 1)
    return found


def _take_turns(cells: Sequence[Cell], options: SelectOptions, progress: Progress) -> None:
    """Every network has a turn in each round, in shuffled order: a noisy moment hurts all alike."""
    rng = np.random.default_rng(options.seed)
    with small_heap():
        for cell in cells:
            cell.warm_up(WARM_UP)
        for done in range(options.rounds):
            for turn, chosen in enumerate(rng.permutation(len(cells))):
                cells[chosen].turn(options.round_s)
                progress("timing", done * len(cells) + turn + 1, options.rounds * len(cells))


def _percentiles(cell: Cell, rng: np.random.Generator) -> tuple[Interval, Interval | None]:
    """Median and 90th percentile in milliseconds.

    Raises:
        TlexportError: hardly anything was answered; the first refusal.
    """
    answers = [load.latencies_s * 1000 for load in cell.loads]
    p50, p90 = stats.percentiles(answers, (0.5, 0.9), rng)
    if p50 is None:
        raise first_error(cell.loads)
    return p50, p90


@dataclasses.dataclass(frozen=True)
class Found:
    """All that was measured."""

    ready: Sequence[Contender]
    heads: Sequence[Crossed]
    left: Sequence[tuple[Entry, TlexportError]]
    part: Part
    seconds: dict[str, float]


def _report(data: Path, field: Field, found: Found) -> SelectReport:
    options = field.options
    rows = _rows(found, options)
    choice = choose(rows, options)
    chosen = choice.row.backbone if choice.row is not None else ""
    entry = next((each.entry for each in found.ready if str(each.entry) == chosen), None)
    held_out = found.part.folds[found.part.folds >= 0]
    return SelectReport(
        data=str(data),
        task=options.task,
        labels=field.known.labels,
        examples=len(held_out),
        available=len(field.known.train) + len(field.known.val),
        folds=len(np.unique(held_out)),
        runtime=options.runtime,
        threads=options.threads or cores(),
        rounds=options.rounds,
        round_s=options.round_s,
        rows=rows,
        left_out=tuple(
            LeftOut(backbone=str(entry), reason=_reason(error)) for entry, error in found.left
        ),
        rule=choice.rule,
        chosen=chosen,
        nearest=choice.nearest,
        command=command(entry, data, options) if entry is not None else "",
        skipped=found.part.skipped,
        notes=(*field.known.notes, *_copies(field.known), *choice.notes),
        seconds=found.seconds,
        seed=options.seed,
        environment=environment(),
    )


def _copies(known: Examples) -> tuple[str, ...]:
    whole = [example.digest for example in (*known.train, *known.val)]
    count = len(whole) - len(set(whole))
    return (f"{count} files are copies of others (equal bytes) and not counted",) if count else ()


def _rows(found: Found, options: SelectOptions) -> tuple[SelectRow, ...]:
    """One per network, the most accurate first; of equally accurate ones the faster."""
    rng = np.random.default_rng(options.seed)
    correct = np.stack([each.correct for each in found.heads])
    shares = [float(row.mean()) for row in correct]
    times = [_percentiles(each.cell, rng) for each in found.ready]
    medians = [p50.value for p50, _ in times]
    sizes = [each.file_bytes for each in found.ready]
    order = sorted(range(len(shares)), key=lambda who: (-shares[who], medians[who]))
    behind = ranking.behind(correct, order[0])
    likely = ranking.likely_best(correct, rng)
    fast, small = ranking.front(medians, shares), ranking.front(sizes, shares)
    rows = []
    for who in order:
        each, head = found.ready[who], found.heads[who]
        untrained = (UNTRAINED,) if each.source == RANDOM else ()
        rows.append(
            SelectRow(
                backbone=str(each.entry),
                weights=each.source,
                accuracy=stats.wilson(int(head.correct.sum()), head.correct.size),
                behind=behind[who],
                different=not behind[who].low <= 0 <= behind[who].high,
                likely_best=float(likely[who]),
                p50_ms=times[who][0],
                p90_ms=times[who][1],
                size_bytes=each.file_bytes,
                parameters=each.parameters,
                width=each.width,
                front_latency=fast[who],
                front_size=small[who],
                penalty=head.penalty,
                loss=head.loss,
                features_s=each.features_s,
                features_reused=each.found.reused,
                export_s=each.export_s,
                export_reused=each.export_reused,
                notes=(*each.notes, *untrained),
            )
        )
    return tuple(rows)
