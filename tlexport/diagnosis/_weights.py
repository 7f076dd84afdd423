"""Weights of a file against those of the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tlexport.bundle import Bundle, read_tensors

MOST_FOLDED = 1e-5
"""Rounding of a weight that was multiplied by its batch norm's factor, as a share of the
channel's largest weight."""
ALIKE = 0.5
"""Share of equal elements from which a weight without a name is taken for one of the bundle's."""
ONE, MOST = 1e-6, 0.5
"""A batch norm leaves a channel as it is only by chance: most factors are farther from 1."""
LEAST = 16
"""Elements below which a constant without a name is taken for no weight."""


def differing(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> tuple[int, list[str]]:
    """How many weights could be compared, and which differ, in words.

    A weight is found by its name, else by what it holds, as it is or transposed. One whose every
    output channel is the bundle's times a factor was folded into its batch norm.
    """
    known = {n: a for n, a in read_tensors(bundle.weights).items() if a.dtype.kind == "f"}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, array in known.items():
        by_shape.setdefault(array.shape, []).append(name)
    compared, told, biases = 0, [], {}
    folded = set()
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        own = known.get(name)
        if own is None or own.shape != array.shape:
            found = _by_content(array, known, by_shape)
            if found is not None:
                compared += 1
                like, why = found
                told += [f"{name}, which is {like}{why}"] if why else []
            continue
        compared += 1
        why = _unequal(own, array)
        if not why or _shared(array, known, by_shape):
            continue
        if array.ndim == 1:
            biases[name] = why
        elif array.ndim > 2 and _is_folded(own, array):
            folded.add(name.rpartition(".")[0])
        else:
            told.append(f"{name}{_lone(own, array) or why}")
    # A bias goes where its weight goes: into the batch norm after it.
    told += [
        f"{name}{why}" for name, why in biases.items() if name.rpartition(".")[0] not in folded
    ]
    return compared, told


def _unequal(own: np.ndarray, array: np.ndarray) -> str:
    """Where two arrays of a shape differ; nothing where they do not."""
    if np.array_equal(own, array):
        return ""
    off = own != array
    where = np.unravel_index(int(np.abs(array - own).argmax()), own.shape)
    place = [int(i) for i in where]
    if off.sum() == 1:
        return f"{place} is {array[where]:.6g}, not {own[where]:.6g}"
    return f" in {int(off.sum())} of {off.size} elements"


def _beyond(own: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Which elements are not the bundle's times their channel's factor: bool [channels, rest]."""
    first, second = (a.reshape(len(a), -1).astype(np.float64) for a in (own, array))
    off = np.abs(second - _median_ratio(first, second)[:, None] * first)
    beyond: np.ndarray = off > MOST_FOLDED * np.abs(second).max(axis=1, keepdims=True)
    return beyond


def _is_folded(own: np.ndarray, array: np.ndarray) -> bool:
    """Whether every output channel is the bundle's times a factor, and most factors are not 1."""
    first, second = (a.reshape(len(a), -1).astype(np.float64) for a in (own, array))
    factors = _median_ratio(first, second)
    scaled = np.abs(factors - 1) > ONE
    return bool(scaled.mean() > MOST and not _beyond(own, array).any())


def _lone(own: np.ndarray, array: np.ndarray) -> str:
    """The one element that is off alone in its channel, where it is one."""
    if own.ndim < 3 or _beyond(own, array).sum() != 1:
        return ""
    where = np.unravel_index(int(_beyond(own, array).argmax()), own.shape)
    return f"{[int(i) for i in where]} is {array[where]:.6g}, alone off in its channel"


def _median_ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(first != 0, second / first, np.nan)
    empty = np.isnan(ratios).all(axis=1)
    ratios[empty] = 0.0
    found: np.ndarray = np.nanmedian(ratios, axis=1)
    return found


def _shared(
    array: np.ndarray, known: Mapping[str, np.ndarray], shapes: Mapping[tuple[int, ...], list[str]]
) -> bool:
    """Whether it equals another of the bundle's weights: exporters keep one of equal arrays."""
    return any(np.array_equal(known[name], array) for name in shapes.get(array.shape, ()))


def _by_content(
    array: np.ndarray, known: Mapping[str, np.ndarray], shapes: Mapping[tuple[int, ...], list[str]]
) -> tuple[str, str] | None:
    """The weight that an array without a name is, and where it differs."""
    if array.size < LEAST or array.ndim not in (1, 2, 3, 4):
        return None
    views: Iterable[np.ndarray] = (array, array.T) if array.ndim == 2 else (array,)
    best: tuple[float, str, str] = (ALIKE, "", "")
    for view in views:
        for name in shapes.get(view.shape, ()):
            share = float((known[name] == view).mean())
            if share == 1:
                return name, ""
            if share > best[0]:
                best = (share, name, _unequal(known[name], view))
    return (best[1], best[2]) if best[1] else None
