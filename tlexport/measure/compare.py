"""Two answers to one question: how far apart, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """How far a candidate's array lies from the reference's.

    `max_abs` is the largest |candidate - reference| over finite elements and `worst_index` where
    it is; both are None / () where nothing can be compared. `problem` says what makes any
    number moot: another shape or dtype, NaN, infinity, or an exact value that differs.
    """

    max_abs: float | None
    worst_index: tuple[int, ...]
    problem: str = ""

    def share(self, scale: float) -> float | None:
        """`max_abs` as a share of `scale`; `max_abs` itself where the scale is 0."""
        if self.max_abs is None:
            return None
        return self.max_abs / scale if scale > 0 else self.max_abs

    def within(self, tolerance: float, scale: float) -> bool:
        """True without a problem and with max_abs <= tolerance x scale.

        A scale of 0 (a reference that answers zeros only) leaves room for zeros only.
        """
        return not self.problem and self.max_abs is not None and self.max_abs <= tolerance * scale


@dataclass(frozen=True)
class Flip:
    """A row whose largest element is another one; `margin` is the reference's top1 - top2."""

    row: int
    reference: int
    candidate: int
    margin: float


def scale_of(reference: np.ndarray) -> float:
    """Largest finite |value| of a numeric array; 0 where there is none or it is not numeric."""
    if reference.dtype.kind not in "fiu" or not reference.size:
        return 0.0
    sizes = np.abs(reference.astype(np.float64))
    finite = sizes[np.isfinite(sizes)]
    return float(finite.max()) if finite.size else 0.0


def difference(reference: np.ndarray, candidate: np.ndarray) -> Difference:
    """Compare two arrays of one output, element by element.

    Floating-point arrays are subtracted in float64. Integers, booleans and strings must be
    equal. NaN and infinity are problems even where both have them: nothing is proven there.
    """
    if reference.shape != candidate.shape:
        return Difference(
            None, (), f"shape {list(candidate.shape)} in place of {list(reference.shape)}"
        )
    if reference.dtype != candidate.dtype:
        return Difference(None, (), f"{candidate.dtype} in place of {reference.dtype}")
    if not reference.size:
        return Difference(0.0, ())
    if reference.dtype.kind != "f":
        return _exact(reference, candidate)
    want, got = reference.astype(np.float64), candidate.astype(np.float64)
    lost = ~(np.isfinite(want) & np.isfinite(got))
    gap = np.abs(np.where(lost, 0.0, got) - np.where(lost, 0.0, want))
    worst = _where(gap)
    largest = float(gap[worst])
    if not lost.any():
        return Difference(largest, worst)
    first = _where(lost)
    values = f"{got[first]} where the reference has {want[first]:.6g}"
    return Difference(largest, first, f"not a finite number: {values}")


def flips(reference: np.ndarray, candidate: np.ndarray) -> list[Flip]:
    """Rows of two [batch, classes] arrays whose largest element differs, finite rows only."""
    if reference.shape != candidate.shape or reference.ndim != 2 or reference.shape[1] < 2:
        return []
    finite = np.isfinite(reference).all(axis=1) & np.isfinite(candidate).all(axis=1)
    want, got = reference.argmax(axis=1), candidate.argmax(axis=1)
    best = np.partition(reference.astype(np.float64), -2, axis=1)[:, -2:]
    return [
        Flip(int(row), int(want[row]), int(got[row]), float(best[row, 1] - best[row, 0]))
        for row in np.flatnonzero(finite & (want != got))
    ]


def all_alike(array: np.ndarray) -> bool:
    """True when every row is the same, bit for bit."""
    return bool((array == array[:1]).all())


def _exact(reference: np.ndarray, candidate: np.ndarray) -> Difference:
    unequal = np.asarray(reference != candidate)
    if not unequal.any():
        return Difference(0.0, (0,) * reference.ndim)
    if reference.dtype.kind in "iu":
        gap = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
    else:
        gap = unequal.astype(np.float64)
    worst = _where(np.where(unequal, np.maximum(gap, 1.0), 0.0))  # 2**63 + 1 - 2**63 is 0 here
    want, got = reference[worst], candidate[worst]
    return Difference(
        max(1.0, float(gap[worst])), worst, f"{got!s} where the reference has {want!s} exactly"
    )


def _where(array: np.ndarray) -> tuple[int, ...]:
    """Index of the largest element (of the first True)."""
    return tuple(int(i) for i in np.unravel_index(int(array.argmax()), array.shape))
