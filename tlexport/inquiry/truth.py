"""What the reference answers, and how far off is healthy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from tlexport.bundle import Bundle
from tlexport.errors import SpecError, TlexportError
from tlexport.measure.compare import scale_of
from tlexport.measure.floor import (
    COARSEST,
    UNITS,
    Asked,
    NoiseFloor,
    Tolerance,
    Usual,
    noise_floor,
    share_of_scale,
    usual,
)
from tlexport.options import RuntimeOptions, VerifyOptions
from tlexport.runtimes import Runtime, connect
from tlexport.spec import ModelSpec, Probe, Tensors, rows

SHARES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.25}
"""Share of the outputs' scale that an answer may be off where no original tells what rounding
costs, by precision."""
ORIGINAL = "eager@cpu"
ROWS_ALONE = 2
EQUAL = 1e-9
"""Share of its norm by which a row in float64 may differ alone and in a batch."""
EXTREME = 10
"""How much more rounding may do at inputs that no model is made for: there own rounding is the
difference of large numbers, told by a single row."""
SHAKY = 1e-2
COARSE = 0.2

Bar = NoiseFloor | Tolerance
Bars = Mapping[str, Bar]


class Truth:
    """The reference, and beside it the original in float64 and in the artifact's precision.

    `answers` are the reference's to the golden samples, each asked alone, and `bars` what a
    candidate's answers to them are held against; `stored_bars` are those of the reference's own
    precision. `criterion` is "noise floor", "share of scale" or "atol and rtol".
    """

    def __init__(
        self, home: Bundle, precision: str, options: VerifyOptions, runtime: RuntimeOptions
    ) -> None:
        self.spec = home.spec
        self.notes: list[str] = []
        self.answers: dict[str, np.ndarray] = {}
        self.bars: Bars = {}
        self.stored_bars: Bars = {}
        self.independent = True
        self._options = options
        self.precision = precision
        self._usual: dict[str, Usual] = {}
        self._stack = ExitStack()
        self.reference = self._open(str(options.reference), home, runtime)
        self._exact: Runtime | None = None
        self._rounded: Runtime | None = None
        asked_for = (options.tolerance, options.atol, options.rtol) != (None, None, None)
        if options.reference == ORIGINAL and home.manifest.original and not asked_for:
            self._exact = self._open(f"{ORIGINAL}-float64", home, runtime)
            self._rounded = self._open(f"{ORIGINAL}-{precision}", home, runtime)

    @property
    def criterion(self) -> str:
        """How answers are judged."""
        if self._exact is not None:
            return "noise floor"
        elementwise = (self._options.atol, self._options.rtol) != (None, None)
        return "atol and rtol" if elementwise else "share of scale"

    @property
    def tolerance(self) -> float:
        """The share of the scale, where that is the criterion."""
        return self._options.tolerance or SHARES.get(self.precision, SHARES["fp32"])

    def close(self) -> None:
        """Give the runtimes back."""
        self._stack.close()

    def hold_golden(self, inputs: Tensors, answers: dict[str, np.ndarray]) -> None:
        """Set the bars of the golden samples; answers: the reference's, each asked alone."""
        self.answers = answers
        if self._exact is not None:
            try:
                self._hold_floor(self._exact, inputs)
                return
            except TlexportError as error:
                self.notes.append(
                    f"the original cannot be computed in float64 ({error.got}): a share of the "
                    "scale is allowed in place of its own rounding"
                )
                self._exact = self._rounded = None
        self.bars = {name: self._tolerance(name, array) for name, array in answers.items()}
        self.stored_bars = self.bars

    def probe(self, probe: Probe) -> tuple[dict[str, np.ndarray], Bars]:
        """The reference's answers to another question, and their bars."""
        inputs = probe.inputs
        size = len(next(iter(inputs.values())))
        want = asked(self.reference, self.spec, inputs, size)
        if self._exact is None:
            return want, {name: self._tolerance(name, array) for name, array in want.items()}
        exact = asked(self._exact, self.spec, inputs, size)
        rounded = asked(self._rounded, self.spec, inputs, size) if self._rounded else want
        bars: dict[str, Bar] = {}
        for name, array in want.items():
            answers = Asked(truth=exact[name], original=array, rounded=rounded[name])
            limits = self._limits()
            # Ranges of int8 were measured on real inputs, not on texts that are cut or repeated.
            if probe.extreme or (self.precision == "int8" and not probe.same_as):
                limits["factor"] *= EXTREME
            bars[name] = noise_floor(answers, self._usual[name], **limits)
        return want, bars

    def _hold_floor(self, exact: Runtime, inputs: Tensors) -> None:
        count = len(next(iter(inputs.values())))
        batched = all(tensor.batched for tensor in self.spec.inputs)
        size = min(self._options.max_batch, count) if batched else 1
        truth = self._by(exact, inputs, size)
        if size > 1:
            few = np.arange(min(ROWS_ALONE, count))
            alone = self._by(exact, rows(inputs, few), 1)
            self.independent = all(_equal(truth[name][few], alone[name]) for name in alone)
        rounded = self._by(self._rounded, inputs, size) if self._rounded else self.answers
        bars, stored = {}, {}
        for name, array in self.answers.items():
            answers = Asked(truth=truth[name], original=array, rounded=rounded[name])
            self._usual[name] = usual(answers)
            bars[name] = noise_floor(answers, self._usual[name], **self._limits())
            own = Asked(truth=truth[name], original=array, rounded=array)
            stored[name] = noise_floor(own, usual(own), factor=self._options.factor)
            self._tell_shaky(name, usual(own), array)
            self._tell_coarse(name, self._usual[name])
        self.bars, self.stored_bars = bars, stored

    def _tell_shaky(self, name: str, own: Usual, array: np.ndarray) -> None:
        if array.dtype.kind == "f" and own.size and own.norm > SHAKY * own.size:
            self.notes.append(
                f"{name!r} is shaky: rounding to float32 alone moves the original's answers "
                f"by {own.norm / own.size:.0%}"
            )

    def _tell_coarse(self, name: str, own: Usual) -> None:
        if self.precision != "fp32" and own.size and own.norm > COARSE * own.size:
            self.notes.append(
                f"{self.precision} itself moves {name!r} by {own.norm / own.size:.0%} of its norm: "
                "whether that is good enough only --data can tell"
            )

    def _by(self, runtime: Runtime, inputs: Tensors, size: int) -> dict[str, np.ndarray]:
        count = len(next(iter(inputs.values())))
        parts = []
        for at in range(0, count, size):
            few = np.arange(at, min(at + size, count))
            parts.append(asked(runtime, self.spec, rows(inputs, few), len(few)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _limits(self) -> dict[str, float]:
        most = COARSEST.get(self.precision, np.inf)
        unit = UNITS.get(self.precision, 0.0)
        return {"factor": self._options.factor, "most": most, "unit": unit}

    def _tolerance(self, name: str, want: np.ndarray) -> Tolerance:
        if self.criterion == "atol and rtol":
            options = self._options
            return Tolerance(want=want, atol=options.atol or 0.0, rtol=options.rtol or 0.0)
        # A question whose answers happen to lie about zero is rounded like any other.
        return share_of_scale(want, self.tolerance, least=scale_of(self.answers[name]))

    def _open(self, name: str, home: Bundle, runtime: RuntimeOptions) -> Runtime:
        opened = connect(name, home, runtime)
        self._stack.callback(opened.close)
        return opened


def asked(runtime: Runtime, spec: ModelSpec, inputs: Tensors, size: int) -> dict[str, np.ndarray]:
    """A runtime's answer to one request: all outputs, a row for each of its rows.

    Raises:
        SpecError: it answers anything else, or fails in its own way.
    """
    try:
        answer = runtime(inputs)
    except TlexportError:
        raise
    except Exception as error:  # a runtime of somebody's own may raise anything
        raise SpecError(
            f"an answer from {runtime.name}",
            got=f"{type(error).__name__}: {error}",
            fix="have the runtime translate it: its author knows what to do about it",
        ) from error
    declared = sorted(tensor.name for tensor in spec.outputs)
    if sorted(answer) != declared:
        raise SpecError(
            f"the outputs {declared} from {runtime.name}",
            got=str(sorted(answer)),
            fix="export or serve the model of this bundle",
        )
    for name, array in answer.items():
        if not array.ndim or len(array) != size:
            raise SpecError(
                f"{name!r} with {size} rows from {runtime.name}",
                got=f"shape {list(array.shape)}",
                fix="export with a dynamic batch axis that every output carries",
            )
    return dict(answer)


def one_by_one(runtime: Runtime, spec: ModelSpec, inputs: Tensors) -> dict[str, np.ndarray]:
    """Answers to all rows, each asked alone.

    Raises:
        SpecError: the answers are not of one shape and dtype.
    """
    count = len(next(iter(inputs.values())))
    answers = [asked(runtime, spec, rows(inputs, np.array([row])), 1) for row in range(count)]
    for sample, answer in enumerate(answers):
        for name, array in answer.items():
            first = answers[0][name]
            if array.shape != first.shape or array.dtype != first.dtype:
                raise SpecError(
                    f"one shape and dtype of {name!r} for all samples",
                    got=f"{array.dtype} {list(array.shape)} for sample {sample}, "
                    f"{first.dtype} {list(first.shape)} for sample 0",
                    fix="the answer's shape must depend on the inputs' shapes alone",
                )
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return bool((first == second).all())
    return bool(np.linalg.norm(first - second) <= EQUAL * np.linalg.norm(first))
