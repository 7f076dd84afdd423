"""What was done to an answer: hypotheses that explain it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tlexport.spec import Tensors

EXPLAINED = 1e-3
"""Share of the answers' norm that may be left unexplained."""
BETTER = 0.1
"""Share of the difference that may be left, at most."""


@dataclass(frozen=True)
class Explanation:
    """A change that turns the reference's answers into the candidate's: stable name, in words."""

    name: str
    told: str


def explanations(
    want: np.ndarray, got: np.ndarray, labels: Sequence[str] = ()
) -> list[Explanation]:
    """Changes to the reference's answers that give the candidate's, the likeliest first.

    Args:
        want: the reference's answers, [batch, ...].
        got: the candidate's to the same rows, [batch, ...].
        labels: names of the columns, for outputs [batch, labels].
    """
    if want.shape != got.shape or want.dtype.kind != "f" or not want.size:
        return []
    first, second = want.astype(np.float64), got.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return []
    flat, other = first.reshape(len(first), -1), second.reshape(len(second), -1)
    off = _norm(other - flat)
    if off <= EXPLAINED * _norm(flat) * BETTER:
        return []
    found = []
    for explanation, changed in _changes(flat, other, labels):
        left = _norm(other - changed)
        if left <= BETTER * off and left <= EXPLAINED * max(_norm(other), _norm(changed)):
            found.append(explanation)
    return found


def _changes(
    want: np.ndarray, got: np.ndarray, labels: Sequence[str]
) -> Iterator[tuple[Explanation, np.ndarray]]:
    count, width = want.shape
    if not got.any():
        yield Explanation("zeros", "every answer is 0"), np.zeros_like(want)
        return
    if count > 1:
        order = _nearest(got, want)
        if sorted(order) == list(range(count)) and list(order) != list(range(count)):
            turned = ", ".join(f"{row} as {int(like)}" for row, like in enumerate(order[:4]))
            told = f"the rows of a batch are shuffled: row {turned}"
            yield Explanation("shuffled-batch", told), want[order]
        yield (
            Explanation("first-row", "every row has the first row's answer"),
            np.repeat(want[:1], count, axis=0),
        )
        columns = _nearest(got.T, want.T) if 1 < width <= 4096 else np.arange(width)
        if sorted(columns) == list(range(width)) and list(columns) != list(range(width)):
            moved = [n for n in range(width) if columns[n] != n]
            names = [labels[n] if len(labels) == width else str(n) for n in moved[:6]]
            told = f"the classes are in another order: {', '.join(names)} have changed places"
            yield Explanation("swapped-labels", told), want[:, columns]
    for name, told, change in FUNCTIONS:
        with np.errstate(all="ignore"):
            changed = change(want)
        if np.isfinite(changed).all():
            yield Explanation(name, told), changed
    factor = float((want * got).sum() / (want * want).sum()) if want.any() else 1.0
    yield Explanation("factor", f"every answer is {factor:.6g} times too large"), factor * want
    offset = (got - want).mean(axis=0, keepdims=True)
    if count > 2:
        place = int(np.abs(offset).argmax())
        name = labels[place] if len(labels) == width else f"element {place}"
        told = f"a constant is added, {offset[0, place]:.4g} to {name}: a bias is another"
        yield Explanation("offset", told), want + offset


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    answer: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return answer


FUNCTIONS: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("softmax", "a softmax is applied that the original does not apply", _softmax),
    ("log-softmax", "a log-softmax is applied in addition", lambda x: np.log(_softmax(x))),
    ("sigmoid", "a sigmoid is applied in addition", lambda x: 1 / (1 + np.exp(-x))),
    ("tanh", "a tanh is applied in addition", np.tanh),
    ("relu", "negative answers are cut off at 0", lambda x: np.maximum(x, 0)),
    ("negated", "every answer has the other sign", np.negative),
    ("rounded", "answers are rounded to whole numbers", np.round),
)


def _nearest(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each row, which of `among` is nearest."""
    squares = (among**2).sum(axis=1)
    distances = squares[None, :] - 2 * rows @ among.T
    nearest: np.ndarray = distances.argmin(axis=1)
    return nearest


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))


def other_inputs(asked: Tensors) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Questions as a wrong preprocessing would ask them: stable name, in words, the inputs."""
    for name, array in asked.items():
        for kind, told, changed in _other_arrays(name, array):
            yield kind, told, {**asked, name: np.ascontiguousarray(changed)}


def _other_arrays(name: str, array: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    if array.ndim == 4 and 3 in (array.shape[-1], array.shape[1]):
        colours, height, width = (3, 1, 2) if array.shape[-1] == 3 else (1, 2, 3)
        yield "channel-order", "the channels are reversed (BGR)", np.flip(array, colours)
        yield "mirrored", "images are upside down", np.flip(array, height)
        yield "mirrored", "images are mirrored", np.flip(array, width)
        if array.shape[height] == array.shape[width]:
            yield "transposed", "height and width change places", np.swapaxes(array, height, width)
    if array.dtype.kind in "iu" and array.ndim == 2:
        if set(np.unique(array)) == {0, 1}:
            yield "mask", f"{name!r} is all ones: padding is not masked", np.ones_like(array)
        yield "reversed", f"{name!r} is read backwards", np.flip(array, 1)
