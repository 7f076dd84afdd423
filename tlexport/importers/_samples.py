"""Samples that the user brings, and inputs drawn within range."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlexport.bundle import Raw
from tlexport.errors import DataError, OptionError
from tlexport.files import is_there
from tlexport.spec import Tensors, TensorSpec, rows

FORM = "an .npz with an array per input, by name (numpy.savez), or a folder of such files"


def arrays(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by name, a row a sample, of an .npz or of a folder of .npz and .npy files.

    `only` is what the array of an .npy file is called, where the model takes one input.

    Raises:
        DataError: there is no such file, it holds pickles, or its arrays do not fit together.
    """
    if not is_there(path):
        raise DataError(f"samples {str(path)!r}", got="nothing there", fix=f"pass {FORM}")
    files = (
        sorted(p for p in path.rglob("*") if p.suffix in (".npz", ".npy"))
        if path.is_dir()
        else [path]
    )
    if not files:
        raise DataError(f"{FORM}, in {str(path)!r}", got="no such file", fix="pass such a folder")
    found = [_read(file, only) for file in files]
    names = set(found[0])
    for file, each in zip(files, found, strict=True):
        if set(each) != names:
            raise DataError(
                f"arrays {', '.join(sorted(names))} in every file",
                got=f"{', '.join(sorted(each))} in {file.name!r}",
                fix="give each file the same arrays",
            )
    return {name: _joined(name, [each[name] for each in found]) for name in found[0]}


def _read(file: Path, only: str | None) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if only is None:
                raise DataError(
                    f"{FORM}: the model takes several inputs",
                    got=f"one array without a name in {file.name!r}",
                    fix="save them with numpy.savez(file, NAME=array, ...)",
                )
            return {only: loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        pickled = "allow_pickle" in why or "pickle" in why.lower()
        raise DataError(
            f"{FORM}, not {file.name!r}",
            got="objects that only pickle can read, which could run code" if pickled else why,
            fix="save plain arrays with numpy.savez",
        ) from error


def _joined(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    try:
        return np.concatenate(parts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise DataError(
            f"arrays {name!r} of one shape but for their rows",
            got=str(error),
            fix="pad them to one length: golden samples are one array; other lengths are asked by "
            "`verify` on its own",
        ) from error


def picked(
    found: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], count: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """At most `count` rows, evenly spaced, of the declared tensors, and of what else there is.

    Raises:
        DataError: an input is not there, or the arrays have not as many rows.
        SpecError: an array is of another dtype, shape or range.
    """
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        raise DataError(
            f"samples with arrays {', '.join(spec.name for spec in specs)}",
            got=f"{', '.join(found)}: without {', '.join(missing)}",
            fix="name the arrays as the inputs",
        )
    lengths = {spec.name: len(np.atleast_1d(found[spec.name])) for spec in specs}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise DataError(
            "as many rows of each array, one at least",
            got=", ".join(f"{name} {length}" for name, length in lengths.items()),
            fix="give each array a row per sample, along its first axis",
        )
    whole = next(iter(lengths.values()))
    index = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    chosen = rows({spec.name: found[spec.name] for spec in specs}, index)
    for spec in specs:
        array = chosen[spec.name]
        spec.check(array if spec.batched else array[:1])
    named = {spec.name for spec in specs}
    extra = {n: a for n, a in found.items() if n not in named and a.ndim and len(a) == whole}
    return chosen, rows(extra, index)


def undeclared(specs: Sequence[TensorSpec]) -> OptionError:
    """The refusal to draw values that nobody declared."""
    names = ", ".join(spec.name for spec in specs)
    asked = " ".join(
        f"--input '{spec.name}:{spec.dtype}[{','.join(map(str, spec.shape))}]=LOW..HIGH'"
        for spec in specs
    )
    return OptionError(
        f"real samples, or the range of legal values of {names}",
        got="neither: inputs are never drawn blindly",
        fix=f"pass --samples FILE.npz, or {asked}",
    )


def drawn(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs within their ranges: {name: [count, ...]}; a mask is ones, then zeros."""
    found = {}
    for spec in specs:
        shape = (count, *(sizes[n] if isinstance(n, str) else n for n in spec.shape[1:]))
        if spec.dtype == "bool":
            found[spec.name] = rng.random(shape) < 0.5
            continue
        assert spec.legal is not None
        low, high = spec.legal
        if "mask" in spec.name and (low, high) == (0, 1) and len(shape) == 2:
            lengths = rng.integers(1, shape[1] + 1, (count, 1))
            lengths[0] = shape[1]
            found[spec.name] = (np.arange(shape[1]) < lengths).astype(spec.dtype)
        elif np.dtype(spec.dtype).kind in "iu":
            found[spec.name] = rng.integers(int(low), int(high), shape, endpoint=True).astype(
                spec.dtype
            )
        else:
            found[spec.name] = rng.uniform(low, high, shape).astype(spec.dtype)
    return found


def as_raw(inputs: Tensors, name: str) -> list[Raw]:
    """Each row as an .npz file of its own, which `tlexport predict` can be asked about."""
    found = []
    for row in range(len(next(iter(inputs.values())))):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for key, array in inputs.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(array[row : row + 1]))
        found.append(Raw(name=f"{name}.npz", content=stream.getvalue()))
    return found
