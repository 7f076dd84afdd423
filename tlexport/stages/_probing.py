"""What a model answers, found by asking it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tlexport.errors import DataError, OptionError, SpecError, TlexportError
from tlexport.importers import ANY_SIZE, Bounds
from tlexport.measure.compare import difference, scale_of
from tlexport.spec import ModelSpec, Tensors, TensorSpec, rows
from tlexport.tasks import tensors

Ask = Callable[[Tensors], dict[str, np.ndarray]]

SIZES = (7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 224, 256, 512, 1024, 4096, 16000)
"""Sizes tried for a free axis, until the model takes one: small ones first."""

LARGER = (4, 2)
"""Times the smallest size that works, if that does too: what strides leave of the smallest may be
a single step, and be traced as a constant."""

ROUNDING = 1e-4
"""Differences of a row alone and in a batch, as a share of the outputs' scale, that are rounding:
other sizes are computed in another order."""


STATISTICS = (
    "statistics of the batch are used though the network is in eval mode: give BatchNorm "
    "track_running_stats=True and train it, and normalise within a row"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model to be asked: its inputs, and how large their free axes may be."""

    ask: Ask
    inputs: tuple[TensorSpec, ...]
    bounds: Bounds

    @property
    def axes(self) -> list[str]:
        """Names of the free axes but the batch."""
        names = [n for t in self.inputs for n in t.shape[1:] if isinstance(n, str)]
        return list(dict.fromkeys(names))

    @property
    def batched(self) -> bool:
        """Whether it takes several rows at once."""
        return all(tensor.batched for tensor in self.inputs)

    def spec(self) -> ModelSpec:
        """Its inputs alone."""
        return ModelSpec(name="model", task="tensors", inputs=self.inputs, outputs=())


def sizes_of(model: Model, draw: Callable[[Mapping[str, int]], Tensors]) -> dict[str, int]:
    """A size for each free axis that the model answers; `draw` gives inputs of such sizes.

    Raises:
        OptionError: it answers none of those tried.
    """
    if not model.axes:
        return {}
    first: TlexportError | None = None
    for size, spread in itertools.product(SIZES, (1, 0)):
        chosen = _within(model, size, spread)
        try:
            model.ask(draw(chosen))
        except TlexportError as error:
            first = first or error
            continue
        for larger in LARGER:
            with contextlib.suppress(TlexportError):  # the smaller size, which works, is taken
                model.ask(draw(_within(model, larger * size, spread)))
                return _within(model, larger * size, spread)
        return chosen
    assert first is not None
    raise OptionError(
        f"a model that answers some size of {', '.join(model.axes)}",
        got=f"none of {SIZES[0]} to {SIZES[-1]}: {first.got}",
        fix="pass --samples, bounds such as sequence<=512, or the number where an axis is constant",
    )


def _within(model: Model, size: int, spread: int) -> dict[str, int]:
    """A size for each axis, within its bounds; spread, they differ and tell which is which."""
    chosen = {}
    for place, axis in enumerate(model.axes):
        low, high = model.bounds.get(axis, ANY_SIZE)
        chosen[axis] = min(max(size * (1 + spread * place), low), high)
    return chosen


def other_sizes(model: Model, inputs: Tensors) -> dict[str, list[int]]:
    """Sizes of each free axis, besides that of `inputs`, which the model answers.

    Raises:
        OptionError: there is none: the axis is a constant.
    """
    few = rows(inputs, slice(0, 2 if model.batched else 1))
    found = {}
    for axis in model.axes:
        now = _size(model.inputs, inputs, axis)
        low, high = model.bounds.get(axis, ANY_SIZE)
        tried = [n for n in (1, 2, 3, now // 2, now + 1, 2 * now) if low <= n <= high and n != now]
        why = f"no other between {low} and {high}"
        works = []
        for size in dict.fromkeys(tried):
            try:
                answer = model.ask(tensors.resized(model.spec(), few, axis, size))
                if all(np.isfinite(a).all() for a in answer.values() if a.dtype.kind == "f"):
                    works.append(size)
            except TlexportError as error:
                why = error.got
        if not works:
            raise OptionError(
                f"an axis {axis!r} of any size, as it is declared",
                got=f"answers at {now} only; {why}",
                fix=f"write {now} in place of {axis} in --input, or change the code that takes the "
                "size for granted (view, reshape and positions of a constant length)",
            )
        found[axis] = works
    return found


def outputs_of(
    model: Model, inputs: Tensors, others: Mapping[str, Sequence[int]]
) -> tuple[TensorSpec, ...]:
    """Outputs with their axes named: each is one of the inputs' free axes, a constant, or free.

    Raises:
        SpecError: a batch of 2 or 3 is not answered, or an output has not a row per row.
    """
    seen: list[tuple[dict[str, int], dict[str, np.ndarray]]] = []
    for size in (1, 2, 3) if model.batched else (1,):
        question = rows(inputs, np.arange(size) % len(next(iter(inputs.values()))))
        seen.append((_sizes(model.inputs, question), _asked(model, question, size)))
    for axis, sizes in others.items():
        question = tensors.resized(model.spec(), rows(inputs, slice(0, 1)), axis, sizes[-1])
        seen.append((_sizes(model.inputs, question), model.ask(question)))
    return tuple(_output(name, seen, batched=model.batched) for name in seen[0][1])


def _asked(model: Model, question: Tensors, size: int) -> dict[str, np.ndarray]:
    try:
        return model.ask(question)
    except TlexportError as error:
        if size == 1 and "when training" not in error.got:
            raise
        raise SpecError(
            f"a network that answers {size} row{'s' * (size > 1)} at a time",
            got=error.got,
            fix=STATISTICS
            if "when training" in error.got
            else "its code takes the batch size for granted: read it off the input (x.shape[0]), "
            "and view or reshape with -1 for it",
        ) from error


def _sizes(specs: Sequence[TensorSpec], inputs: Tensors) -> dict[str, int]:
    """The size of every free axis, the batch first."""
    found: dict[str, int] = {}
    for spec in specs:
        for place, name in enumerate(spec.shape):
            if isinstance(name, str):
                found[name] = inputs[spec.name].shape[place]
    return found


def _size(specs: Sequence[TensorSpec], inputs: Tensors, axis: str) -> int:
    return _sizes(specs, inputs)[axis]


def _output(
    name: str, seen: Sequence[tuple[dict[str, int], dict[str, np.ndarray]]], *, batched: bool
) -> TensorSpec:
    arrays = [answer[name] for _, answer in seen]
    shapes = [array.shape for array in arrays]
    first = shapes[0]
    told = ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
    if len({len(shape) for shape in shapes}) > 1 or not first:
        raise SpecError(
            f"an output {name!r} with a row per row of the inputs",
            got=f"shapes {told}",
            fix="return [batch, ...]: a loss or a mean over the batch is no answer to a row",
        )
    axes: list[int | str] = []
    for place in range(len(first)):
        sizes = [shape[place] for shape in shapes]
        equal = [
            n for n in seen[0][0] if all(s[n] == z for (s, _), z in zip(seen, sizes, strict=True))
        ]
        if len(set(sizes)) == 1 and not (batched and place == 0):
            axes.append(sizes[0])
        else:
            axes.append(equal[0] if equal else f"{name}_{place}")
    if axes[0] != ("batch" if batched else 1):
        raise SpecError(
            f"an output {name!r} with a row per row of the inputs",
            got=f"shapes {told} for batches of {[s.get('batch', 1) for s, _ in seen]}",
            fix="return [batch, ...], the rows in the order of the inputs; view and reshape with "
            "-1 for the batch, not with its size as a number",
        )
    return TensorSpec(name=name, dtype=arrays[0].dtype.name, shape=tuple(axes))


def hold_steady(model: Model, inputs: Tensors, blame: Callable[[Tensors, Tensors], str]) -> None:
    """Refuse a model that answers the same question otherwise the second time, or in company.

    `blame` names the part that does, given two questions whose first rows are the same.

    Raises:
        DataError: with what to change.
    """
    count = len(next(iter(inputs.values())))
    several = rows(inputs, np.arange(min(4, count)) if model.batched else slice(0, 1))
    first, again = model.ask(several), model.ask(several)
    for name, array in first.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"finite numbers in {name!r}",
                got="NaN or infinity for samples within range",
                fix="the weights are damaged or of another network, or the samples are not what it "
                "was trained on",
            )
        if not difference(array, again[name]).within(ROUNDING, scale_of(array)):
            raise DataError(
                "the same answer to the same question",
                got=f"{name!r} differs from call to call{blame(several, several)}",
                fix="randomness is on though the network is in eval mode: pass "
                "training=self.training to functional dropout, and draw no noise in forward()",
            )
    if not model.batched:
        return
    one = rows(inputs, slice(0, 1))
    alone = model.ask(one)
    for name, array in alone.items():
        if array.dtype.kind == "f" and not difference(array, first[name][:1]).within(
            ROUNDING, scale_of(first[name])
        ):
            raise DataError(
                "a row answered in a batch as it is alone",
                got=f"{name!r} depends on the other rows{blame(one, several)}",
                fix=f"{STATISTICS}; branch on no value of the whole batch",
            )


def differences(wanted: Tensors, found: Tensors, allowed: float) -> list[str]:
    """Outputs that are off by more than that share of their scale, and by how much."""
    told = []
    for name, array in wanted.items():
        gap = difference(array, found[name])
        if not gap.within(allowed, scale_of(array)):
            told.append(f"{name!r}: {gap.problem or f'off by {gap.max_abs:.3g}'}")
    return told
