"""Labelled rows of CSV, TSV, JSON lines and Parquet files."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlexport.errors import DataError
from tlexport.files import cache_folder, is_file, is_there, sha256_of, text_of
from tlexport.options import DataOptions
from tlexport.tasks import Example, Examples

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
VAL_NAMES = ("val", "valid", "validation", "dev")
TEXT_COLUMNS = ("text", "sentence", "content", "review", "comment", "document", "tweet", "message")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment")

CHUNK = 10_000
"""Rows looked at in one go while labels and digests are taken."""

MOST_LABELS = 10_000
"""More of them are no classes but a column of numbers or texts."""

LISTED = 20

Row = dict[str, str | None]


class Table:
    """Rows of one file, on disk: a text is read when it is asked for."""

    def __init__(self, path: Path, rows: datasets.Dataset) -> None:
        self.path = path
        self.rows = rows
        self._texts = rows.data.column("text")

    def text(self, row: int) -> str | None:
        """The text of a row, counted from 0."""
        found: str | None = self._texts[row].as_py()
        return found


class Cell:
    """One row's text: a `Source`."""

    __slots__ = ("row", "table")

    def __init__(self, table: Table, row: int) -> None:
        self.table = table
        self.row = row

    @property
    def name(self) -> str:
        """row-17.txt."""
        return f"row-{self.row + 1}.txt"

    def read_bytes(self) -> bytes:
        """The text in UTF-8.

        Raises:
            OSError: the row has none.
        """
        found = self.table.text(self.row)
        if found is None:
            raise OSError("the row has no text (null)")
        return found.encode()

    def __str__(self) -> str:
        return f"{self.table.path} row {self.row + 1}"


def found(root: Path) -> bool:
    """Whether `root` is a table, or a folder with tables train and val in it."""
    return (is_file(root) and root.suffix.lower() in SUFFIXES) or bool(_parts(root))


def read(root: Path, choice: DataOptions, known: tuple[str, ...] = ()) -> Examples:
    """The rows of a table, or of the tables train and val of a folder; rows count from 1.

    The file is converted once into memory-mapped columns in the cache; texts stay on disk. With
    `known` labels the rows may have some of them, and of a folder val alone is read.

    Raises:
        DataError: the file cannot be parsed, a column is not there, or a row has no label or an
            unknown one.
    """
    parts = _parts(root) or {"train": root}
    tables = {part: _open(path, choice) for part, path in parts.items()}
    if known:
        chosen = tables.get("val") or tables["train"]
        return Examples(
            labels=known, train=_examples(chosen, known, "the model's"), val=(), notes=()
        )
    labels = _labels(tables["train"])
    val = tables.get("val")
    return Examples(
        labels=labels,
        train=_examples(tables["train"], labels, "train's"),
        val=_examples(val, labels, "train's") if val else (),
        notes=(),
    )


def _parts(root: Path) -> dict[str, Path]:
    if is_file(root) or not is_there(root):
        return {}
    tables = {path.stem.lower(): path for path in root.iterdir() if path.suffix in SUFFIXES}
    if "train" not in tables:
        return {}
    val = next((tables[name] for name in VAL_NAMES if name in tables), None)
    return {"train": tables["train"]} | ({"val": val} if val else {})


def _open(path: Path, choice: DataOptions) -> Table:
    import datasets  # half a second, which no stage but those that read data shall pay
    import pyarrow

    try:
        digest = sha256_of(path)
        columns = _columns(path, choice)
        asked = {"path": str(path), "columns": columns, "sha256": digest}
        with _quiet():
            rows = datasets.Dataset.from_generator(
                _rows,
                features=datasets.Features(
                    {"text": datasets.Value("large_string"), "label": datasets.Value("string")}
                ),
                gen_kwargs=asked,
                cache_dir=str(cache_folder() / "tables"),
            )
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise _unreadable(path, error) from error
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, DataError):
            raise cause from None
        raise _unreadable(path, cause or error) from error
    return Table(path, rows)


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"a table of {', '.join(SUFFIXES)} in UTF-8: {str(path)!r}",
        got=" ".join(str(error).split())[:300] or type(error).__name__,
        fix="mend the file, or save it as JSON lines or Parquet",
    )


def _columns(path: Path, choice: DataOptions) -> tuple[str, str]:
    """Names of the column of texts and of the column of labels."""
    there = _header(path)
    picked = []
    for flag, asked, usual in (
        ("--text-column", choice.text_column, TEXT_COLUMNS),
        ("--label-column", choice.label_column, LABEL_COLUMNS),
    ):
        lower = {name.lower(): name for name in reversed(there)}
        name = asked if asked else next((lower[n] for n in usual if n in lower), None)
        if name is None or name not in there:
            shown = ", ".join(repr(column[:40]) for column in there[:LISTED])
            raise DataError(
                f"a column {asked!r}" if asked else f"a column called {', '.join(usual)}",
                got=f"the columns {shown} in {text_of(path)}",
                fix=f"pass {flag} NAME; the first line of a CSV or TSV must name the columns",
            )
        picked.append(name)
    return picked[0], picked[1]


def _header(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(path).names)
    if kind in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream, _dialect(kind)), [])
    with path.open(encoding="utf-8-sig") as stream:
        line = next((line for line in stream if line.strip()), "{}")
    return list(_object(line, path, 1))


def _rows(path: str, columns: tuple[str, str], sha256: str) -> Iterator[Row]:
    """{"text", "label"} of each row; `sha256` makes an edited file another one for the cache."""
    place = Path(path)
    kind = place.suffix.lower()
    if kind == ".parquet":
        source = _parquet_rows(place, columns)
    else:
        source = _csv_rows(place, columns) if kind in (".csv", ".tsv") else _json_rows(place)
    number = 0
    for number, row in enumerate(source, start=1):
        text, label = row.get(columns[0]), row.get(columns[1])
        if text is not None and not isinstance(text, str):
            text = _plain(text, place, number, columns[0])
        yield {"text": text, "label": _label(label, place, number)}
    if not number:
        raise DataError(f"rows in {path!r}", got="none", fix="name a table with a row per example")


def _parquet_rows(path: Path, columns: tuple[str, str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=1000, columns=list(dict.fromkeys(columns))):
            yield from batch.to_pylist()


def _csv_rows(path: Path, columns: tuple[str, str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, _dialect(path.suffix.lower()), strict=True)
        header = next(rows)
        text, label = header.index(columns[0]), header.index(columns[1])
        number = 0
        try:
            for row in rows:
                if not row:
                    continue  # an empty line
                number += 1
                if len(row) != len(header):
                    raise DataError(
                        f"{len(header)} fields in each row of {text_of(path)}",
                        got=f"{len(row)} in row {number} (line {rows.line_num})",
                        fix="put fields that hold the separator or a line break into quotes",
                    )
                yield {columns[0]: row[text], columns[1]: row[label]}
        except csv.Error as error:
            raise DataError(
                f"a table that can be parsed: {text_of(path)}",
                got=f"{error} in row {number + 1} (line {rows.line_num})",
                fix='double the quotes inside a quoted field (""), or save as JSON lines',
            ) from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        number = 0
        for line in stream:
            if line.strip():
                number += 1
                yield _object(line, path, number)


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        found, why = None, str(error)
    else:
        why = f"a {type(found).__name__}"
    if not isinstance(found, dict):
        raise DataError(
            f"a JSON object in each line of {text_of(path)}",
            got=f"{why} in row {number}",
            fix='write one {"text": ..., "label": ...} a line',
        )
    return found


def _dialect(kind: str) -> type[csv.Dialect]:
    return csv.excel_tab if kind == ".tsv" else csv.excel


def _plain(value: Any, path: Path, number: int, column: str) -> str:
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise DataError(
        f"text in column {column!r} of {text_of(path)}",
        got=f"a {type(value).__name__} in row {number}",
        fix="name another --text-column, or write texts",
    )


def _label(value: Any, path: Path, number: int) -> str:
    """A label as text: 3 and 3.0 and "3" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = str(value).strip() if isinstance(value, (str, bool, int)) else ""
    if not found or not found.isprintable():
        raise DataError(
            f"a printable label in each row of {text_of(path)}",
            got=f"{value!r} in row {number}",
            fix="fill it in or remove the row: a label is a text or a whole number",
        )
    return found


def _labels(table: Table) -> tuple[str, ...]:
    counted: Counter[str] = Counter()
    for part in table.rows.data.column("label").chunks:
        counted.update(part.to_pylist())
    if not 2 <= len(counted) <= MOST_LABELS or len(counted) * 2 > len(table.rows) + 2:
        shown = ", ".join(map(repr, list(counted)[:5]))
        raise DataError(
            f"two classes or more, with several rows each, in {text_of(table.path)}",
            got=f"{len(counted)} different labels in {len(table.rows)} rows, such as {shown}",
            fix="name the column of the classes with --label-column",
        )
    numbers = all(label.lstrip("-").isdecimal() and label.isascii() for label in counted)
    return tuple(sorted(counted, key=int) if numbers else sorted(counted))


def _examples(table: Table, labels: Sequence[str], whose: str) -> list[Example]:
    """An example per row; equal texts have equal digests."""
    number_of = {label: number for number, label in enumerate(labels)}
    examples: list[Example] = []
    for batch in table.rows.data.to_batches(max_chunksize=CHUNK):
        texts, names = (batch.column(name).to_pylist() for name in ("text", "label"))
        for text, label in zip(texts, names, strict=True):
            row = len(examples)
            if label not in number_of:
                raise DataError(
                    f"labels among {whose}: {', '.join(labels[:LISTED])}",
                    got=f"{label!r} in row {row + 1} of {text_of(table.path)}",
                    fix="correct or remove the row, or train with that class too",
                )
            content = (text or "").encode(errors="surrogatepass")
            examples.append(
                Example(
                    source=Cell(table, row),
                    label=number_of[label],
                    digest=hashlib.blake2b(content, digest_size=16).hexdigest(),
                    size=len(content),
                )
            )
    return examples


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and log lines off the terminal."""
    import datasets

    logger = logging.getLogger("datasets")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
