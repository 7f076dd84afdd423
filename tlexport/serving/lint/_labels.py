"""Rules of label files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import Model, Scope, inside, written
from tlexport.serving.lint._text import Edit

MARK = "\ufeff"


def labels(model: Model, scope: Scope) -> Iterator[Finding]:
    """Every label file that an output names."""
    for place, block in enumerate(model.config.output):
        name = str(block.label_filename)
        if not name:
            continue
        where = ("output", place, "label_filename")
        path = Path(f"{model.folder}/{name}")  # how the server joins them: "/x" is below it, too
        if not path.is_file():
            yield model.finding(
                "label-file",
                where,
                f"the label file {name!r} beside config.pbtxt",
                got="a folder, which ends the server" if path.is_dir() else "none",
                fix="put it there, a label a line, or leave label_filename out",
            )
        elif not inside(model.folder, path):
            yield model.finding(
                "label-path",
                where,
                "a label file in the model's own folder",
                got=f"{name!r}, which is {str(path.resolve())!r}",
                fix="copy it beside config.pbtxt",
            )
        else:
            yield from _content(model, path, tuple(block.dims))


def _content(model: Model, path: Path, dims: tuple[int, ...]) -> Iterator[Finding]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    lines = text.removesuffix("\n").split("\n") if text else []
    wanted = dims[-1] if dims else -1
    if len(dims) == 1 and wanted > 0 and len(lines) != wanted:
        yield model.finding(
            "label-count",
            path,
            f"{wanted} labels, one for each element of the output",
            got=f"{len(lines)} lines",
            fix="write a label a line, in the order of the output, and nothing else",
        )
    if len(dims) != 1 or wanted == -1:
        yield model.finding(
            "label-shape",
            path,
            "labels for an output of one axis of known length",
            got=f"one of {written(dims)}, which the server flattens",
            fix="leave label_filename out unless the flat order is what you mean",
        )
    yield from _letters(model, path, text)


def _letters(model: Model, path: Path, text: str) -> Iterator[Finding]:
    faults = {
        "a byte order mark before the first label": text.startswith(MARK),
        "carriage returns, which become part of each label": "\r" in text,
        "bytes that are no UTF-8": any("\udc80" <= letter <= "\udcff" for letter in text),
    }
    found = [what for what, is_so in faults.items() if is_so]
    if not found:
        return
    finding = model.finding(
        "label-text",
        path,
        "lines of UTF-8 that end with a line feed alone",
        got=", ".join(found),
        fix="save it as UTF-8 with Unix line ends",
    )
    if faults["bytes that are no UTF-8"]:
        yield finding
        return
    mended = text.removeprefix(MARK).replace("\r\n", "\n").replace("\r", "\n")
    yield finding.mended(Edit(0, len(text), mended))


RULES = (labels,)
