"""A folder per class, or train/ and val/ above those."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tlexport.errors import DataError
from tlexport.files import is_file, is_there, sha256_of, text_of
from tlexport.tasks import Example, Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a folder shall hold: `suffixes` in lower case, `name` as the user calls such files.

    `cost` tells of a file what it will cost (see `Example.size`).
    """

    suffixes: Collection[str]
    name: str
    cost: Callable[[Path], int] = lambda path: 0


VAL_NAMES = ("val", "valid", "validation")
SHOWN = 5


def read(root: Path, kind: Kind, known: tuple[str, ...] = ()) -> Examples:
    """Find the labelled files below `root`: any depth below a class folder, hidden ones left out.

    With `known` labels the folders may be some of them, and `label` counts into `known`; of
    train/ and val/ only val/ is read then.

    Raises:
        DataError: no folder, fewer than two classes, an empty class, a class only in val/.
    """
    if is_file(root) or not is_there(root):
        got = "a file" if is_file(root) else "nothing there"
        raise DataError(f"a folder {str(root)!r} with a sub-folder per class", got=got, fix=LAYOUT)
    train_root, val_root, notes = _parts(root)
    if known:
        return _of_known(val_root or train_root, kind, known)
    labels = _labels(train_root, kind)
    ignored: list[Path] = []
    train = _examples(train_root, labels, kind, ignored)
    _refuse_empty(train_root, labels, train, kind.name)
    val = _val_examples(val_root, labels, kind, ignored) if val_root else []
    if ignored:
        notes.append(
            f"{len(ignored)} files are not {kind.name} by name and were left: {_some(ignored)}"
        )
    return Examples(labels=labels, train=tuple(train), val=tuple(val), notes=tuple(notes))


def _of_known(root: Path, kind: Kind, known: tuple[str, ...]) -> Examples:
    names = [folder.name for folder in _folders(root)]
    strange = sorted(set(names) - set(known))
    if strange or not names:
        raise DataError(
            f"class folders of the model's labels in {str(root)!r}: {', '.join(known[:20])}",
            got=f"folders {', '.join(strange)}" if strange else "no class folders",
            fix="rename or remove the folders that the model has no label for",
        )
    ignored: list[Path] = []
    found = _examples(root, known, kind, ignored)
    if not found:
        raise DataError(f"{kind.name} in {str(root)!r}", got="none", fix=LAYOUT)
    return Examples(labels=known, train=tuple(found), val=(), notes=())


LAYOUT = "make a folder per class with its files inside, or train/ and val/ above such folders"


def _parts(root: Path) -> tuple[Path, Path | None, list[str]]:
    folders = {folder.name: folder for folder in _folders(root)}
    val = next((folders[name] for name in VAL_NAMES if name in folders), None)
    if "train" in folders and val is not None:
        left = sorted(set(folders) - {"train", val.name})
        return folders["train"], val, [f"left alone: {', '.join(left)}"] if left else []
    if set(folders) in ({"train"}, {"train", "test"}):
        notes = (
            ["test/ was left alone: pass it to `tlexport evaluate`"] if "test" in folders else []
        )
        return folders["train"], None, notes
    return root, None, []


def _folders(root: Path) -> list[Path]:
    try:
        found = [entry for entry in root.iterdir() if entry.is_dir()]
    except OSError as error:
        raise DataError(
            f"a readable folder {str(root)!r}", got=str(error.strerror), fix="check its permissions"
        ) from error
    return sorted(f for f in found if not f.name.startswith((".", "__MACOSX")))


def _labels(root: Path, kind: Kind) -> tuple[str, ...]:
    labels = tuple(folder.name for folder in _folders(root))
    if len(labels) < 2:
        loose = sum(
            file.suffix.lower() in kind.suffixes for file in root.iterdir() if file.is_file()
        )
        found = f"the one class {labels[0]!r}" if labels else "no class folders"
        raise DataError(
            f"at least two class folders in {str(root)!r}",
            got=found + (f", and {loose} {kind.name} beside them" if loose else ""),
            fix=LAYOUT,
        )
    odd = [label for label in labels if not label.isprintable()]
    if odd:
        raise DataError(
            "class folders with printable names",
            got=", ".join(map(repr, odd)),
            fix="rename them: labels.txt holds one label a line",
        )
    return labels


def _examples(
    root: Path, labels: tuple[str, ...], kind: Kind, ignored: list[Path]
) -> list[Example]:
    files: list[tuple[Path, int]] = []
    for number, label in enumerate(labels):
        for path in _below(root / label):
            if path.suffix.lower() in kind.suffixes:
                files.append((path, number))
            else:
                ignored.append(path)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, (path for path, _ in files)))
        sizes = list(pool.map(kind.cost, (path for path, _ in files)))
    return [
        Example(source=path, label=label, digest=digest, size=size)
        for (path, label), digest, size in zip(files, digests, sizes, strict=True)
    ]


def _below(folder: Path) -> Iterator[Path]:
    """Every file below, by name, hidden ones left out; links are followed, each folder once."""

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            return  # val/ need not have every class
        raise DataError(
            f"a readable folder {error.filename!r}",
            got=str(error.strerror),
            fix="check its permissions",
        ) from error

    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _digest(path: Path) -> str:
    """Digest of the content; an unreadable file has one of its own, and is reported when loaded."""
    try:
        return sha256_of(path)
    except OSError:
        return f"unreadable:{path}"


def _val_examples(
    root: Path, labels: tuple[str, ...], kind: Kind, ignored: list[Path]
) -> list[Example]:
    extra = sorted({folder.name for folder in _folders(root)} - set(labels))
    if extra:
        raise DataError(
            f"in {root.name}/ only classes that train/ has",
            got=f"{', '.join(extra)} in {root.name}/ alone",
            fix="add them to train/ or take them out",
        )
    found = _examples(root, labels, kind, ignored)
    if not found:
        raise DataError(f"files in {str(root)!r}", got="none", fix="add some or remove the folder")
    return found


def _refuse_empty(root: Path, labels: tuple[str, ...], examples: list[Example], kind: str) -> None:
    used = {example.label for example in examples}
    empty = [label for number, label in enumerate(labels) if number not in used]
    if empty:
        raise DataError(
            f"{kind} in every class folder of {str(root)!r}",
            got=f"none in {', '.join(empty)}",
            fix=f"add {kind} there or remove the folder",
        )


def _some(paths: list[Path]) -> str:
    names = ", ".join(text_of(path.name) for path in paths[:SHOWN])
    return names + (" ..." if len(paths) > SHOWN else "")
