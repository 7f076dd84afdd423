"""How much an answer may be off: the original's own rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tlexport.measure.compare import difference, scale_of

LEAST = 0.5
"""Share of the usual rounding that a sample's floor never lies below: a sample whose own rounding
happens to cancel would otherwise allow nothing. All of it in a precision below fp32, where a
runtime rounds at other places than the original does, and few logits are one draw of a few."""
COARSEST = {"int8": 1.0, "bf16": 0.5, "fp16": 0.5}
"""Most that an answer may be off, as a share of its norm (or of the usual norm, where it is
smaller): at 1, zeros would be as near. It does not hold where the precision itself costs as much,
in the hands of the original."""

UNITS = {"int8": 1 / 127, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""One step of a precision at the largest value it holds: a row's floor is no finer at its norm.
Rows that are alike share one draw of the precision's rounding, which may happen to be none."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A candidate's answer to a question, in one output.

    `error` is what it is off by in its worst row (in the Euclidean or the largest norm, whichever
    is the worse), `own` that row's noise floor and `ratio` error / own, the number that is judged,
    all three None where the criterion is another.
    `max_abs` is the largest |difference| and `worst_index` its (row, element ...). `allowed` says
    in words what was; `problem` what makes any number moot.
    """

    passed: bool
    max_abs: float | None
    worst_index: tuple[int, ...]
    error: float | None = None
    own: float | None = None
    ratio: float | None = None
    allowed: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The original in float64, and how far rounding takes the original itself from it.

    `truth` is [batch, ...] in float64, `like` the original's answer in its own dtype. `norms` and
    `peaks` are floors of a row's error in the Euclidean and in the largest norm, float64 [batch];
    `size` is the usual norm of a row.
    """

    truth: np.ndarray
    like: np.ndarray
    norms: np.ndarray
    peaks: np.ndarray
    factor: float
    most: float = np.inf
    size: float = 0.0

    def judge(self, got: np.ndarray) -> Judged:
        """A row passes where its error is at most `factor` floors, in both norms."""
        found = difference(self.like, got)
        if found.problem or found.max_abs is None or self.like.dtype.kind != "f":
            exact = not found.problem and found.max_abs == 0
            return Judged(
                passed=exact,
                max_abs=found.max_abs,
                worst_index=found.worst_index,
                problem=found.problem,
                allowed="exact equality",
            )
        gap = np.abs(_flat(got) - _flat(self.truth))
        norms, peaks = _norms(gap), gap.max(axis=1, initial=0.0)
        by_norm, by_peak = _ratio(norms, self.norms), _ratio(peaks, self.peaks)
        ratios = np.maximum(by_norm, by_peak)
        sizes = _norms(_flat(self.truth))
        share = _ratio(norms, np.maximum(sizes, self.size))
        row = int(ratios.argmax()) if len(ratios) else 0
        if not len(ratios):
            return Judged(passed=True, max_abs=0.0, worst_index=())
        coarse = bool((share > self.most).any())
        if coarse and ratios[row] <= self.factor:
            row = int(share.argmax())
        peak = by_peak[row] > by_norm[row]
        element = np.unravel_index(int(gap[row].argmax()), self.truth.shape[1:])
        return Judged(
            passed=bool(ratios[row] <= self.factor) and not coarse,
            max_abs=float(gap[row].max()),
            worst_index=(row, *(int(i) for i in element)),
            error=float((peaks if peak else norms)[row]),
            own=float((self.peaks if peak else self.norms)[row]),
            ratio=float(ratios[row]),
            allowed=f"{self.factor:g}x" + (f" and {self.most:g} of its norm" if coarse else ""),
        )

    def pick(self, rows: np.ndarray) -> NoiseFloor:
        """The floor of these rows."""
        return NoiseFloor(
            truth=self.truth[rows],
            like=self.like[rows],
            norms=self.norms[rows],
            peaks=self.peaks[rows],
            factor=self.factor,
            most=self.most,
            size=self.size,
        )

    def room(self, row: int) -> float:
        """The most that an element of this row may be off."""
        return self.factor * float(self.peaks[row])

    def between(self, first: np.ndarray) -> NoiseFloor:
        """The same floors around another answer: how far two answers of a candidate may part."""
        return NoiseFloor(
            truth=first.astype(np.float64) if first.dtype.kind == "f" else first,
            like=first,
            norms=self.norms,
            peaks=self.peaks,
            factor=self.factor,
            most=self.most,
            size=self.size,
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The original's answers to a question, each [batch, ...].

    `truth` is in float64, `original` in the dtype that is served, `rounded` computed in the
    candidate's precision.
    """

    truth: np.ndarray
    original: np.ndarray
    rounded: np.ndarray

    def norms(self) -> np.ndarray:
        """What rounding takes each row off, in the Euclidean norm: float64 [batch]."""
        found: np.ndarray = np.maximum(
            _norms(self._gap(self.original)), _norms(self._gap(self.rounded))
        )
        return found

    def peaks(self) -> np.ndarray:
        """The same in the largest norm."""
        first, second = self._gap(self.original), self._gap(self.rounded)
        found: np.ndarray = np.maximum(first, second).max(axis=1, initial=0.0)
        return found

    def sizes(self) -> np.ndarray:
        """Norms of the rows: float64 [batch]."""
        return _norms(_flat(self.truth))

    def _gap(self, answer: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gap: np.ndarray = np.abs(_flat(answer) - _flat(self.truth))
        return gap


@dataclass(frozen=True, kw_only=True)
class Usual:
    """Rounding of the golden samples: what a question of few rows leans on.

    `norm` and `peak` are medians over rows of their rounding, `size` of their norms.
    """

    norm: float
    peak: float
    size: float


def usual(asked: Asked) -> Usual:
    """The usual rounding of rows."""
    return Usual(
        norm=float(np.median(asked.norms())),
        peak=float(np.median(asked.peaks())),
        size=float(np.median(asked.sizes())),
    )


def noise_floor(
    asked: Asked, usual: Usual | None, *, factor: float, most: float = np.inf, unit: float = 0.0
) -> NoiseFloor:
    """The floor of a question's rows.

    A row's floor is the largest of: what rounding takes the original off there (as it is, and in
    the candidate's precision); half of what it usually does (all of it in a precision below
    fp32), in proportion where the row is larger; and a unit of the output's dtype, or of the
    precision, at the row's norm.

    Args:
        asked: the original's answers.
        usual: rounding of the golden samples, None where it does not matter.
        factor: how many floors a row may be off.
        most: how much of its norm it may be off at most, unless rounding costs half of that.
        unit: one step of the candidate's precision, as a share of the largest value.
    """
    truth, original = asked.truth, asked.original
    if usual is not None and 2 * usual.norm > most * usual.size:
        most = np.inf
    if original.dtype.kind != "f":
        empty = np.zeros(len(original))
        return NoiseFloor(
            truth=original, like=original, norms=empty, peaks=empty, factor=factor, most=most
        )
    least = 1.0 if unit else LEAST
    sizes, unit = asked.sizes(), max(unit, float(np.finfo(original.dtype).eps))
    norms = [asked.norms(), unit * sizes]
    peaks = [asked.peaks(), unit * np.abs(_flat(truth)).max(axis=1, initial=0.0)]
    if usual is not None:
        larger = sizes / usual.size if usual.size > 0 else np.zeros_like(sizes)
        norms.append(np.maximum(larger, least) * usual.norm)
        peaks.append(np.maximum(larger, least) * usual.peak)
    return NoiseFloor(
        truth=truth,
        like=original,
        norms=np.maximum.reduce(norms),
        peaks=np.maximum.reduce(peaks),
        factor=factor,
        most=most,
        size=usual.size if usual is not None else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|got - want| <= atol + rtol x |want|, element by element, as numpy.allclose has it."""

    want: np.ndarray
    atol: float
    rtol: float

    def judge(self, got: np.ndarray) -> Judged:
        """Pass where every element is within."""
        found = difference(self.want, got)
        if found.problem or found.max_abs is None or self.want.dtype.kind != "f":
            return Judged(
                passed=not found.problem and found.max_abs == 0,
                max_abs=found.max_abs,
                worst_index=found.worst_index,
                problem=found.problem,
                allowed="exact equality",
            )
        want = self.want.astype(np.float64)
        gap = np.abs(got.astype(np.float64) - want)
        room = self.atol + self.rtol * np.abs(want)
        beyond = gap - room
        if not gap.size:
            return Judged(passed=True, max_abs=0.0, worst_index=())
        where = np.unravel_index(int((beyond if self.rtol else gap).argmax()), gap.shape)
        return Judged(
            passed=bool((gap <= room).all()),
            max_abs=float(gap[where]),
            worst_index=tuple(int(i) for i in where),
            allowed=f"{float(room[where]):.3g}",
        )

    def pick(self, rows: np.ndarray) -> Tolerance:
        """The bar of these rows."""
        return Tolerance(want=self.want[rows], atol=self.atol, rtol=self.rtol)

    def room(self, row: int) -> float:
        """The most that an element of this row may be off."""
        return self.atol + self.rtol * scale_of(self.want[row])

    def between(self, first: np.ndarray) -> Tolerance:
        """The same room around another answer."""
        return Tolerance(want=first, atol=self.atol, rtol=self.rtol)


def share_of_scale(want: np.ndarray, share: float, *, least: float = 0.0) -> Tolerance:
    """Room of that share of the largest |value| of `want`, or of `least` where that is larger.

    It is for where nothing tells what rounding costs.
    """
    return Tolerance(want=want, atol=share * max(scale_of(want), least), rtol=0.0)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64).reshape(len(array), -1)


def _norms(flat: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt(np.square(flat).sum(axis=1))
    return norms


def _ratio(errors: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Errors / floors; an error where the floor is 0 is beyond any factor, none is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = errors / floors
    return np.where(errors == 0, 0.0, found)
