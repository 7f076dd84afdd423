"""Why a network could not be traced, and what to change."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator

import torch

from tlexport.errors import ExportError, place_of
from tlexport.spec import ModelSpec

LARGE = 1_000_000
"""What an axis without bounds shall have at least; torch itself bounds them far above."""

SHAPES = "torch.fx.experimental.symbolic_shapes"
"""The logger where torch tells each condition on a size, while the code that set it runs."""


class Conditions(logging.Handler):
    """Collects where the user's code sets conditions on sizes: (condition, place)."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a condition with the line of the user's code that is being run."""
        text = record.getMessage()
        if text.startswith("eval ") and "[guard added]" in text and "solve_constr" not in text:
            self.found.append((text[5:].partition(" [guard")[0], place_of()))

    def place(self, *, constant: bool) -> str:
        """Where the first condition was set that has a place; equalities make a constant."""
        for condition, place in self.found:
            if place and condition.startswith("Eq(") == constant:
                return place
        return next((place for _, place in self.found if place), "")


@contextlib.contextmanager
def conditions() -> Iterator[Conditions]:
    """Watch what is asked of sizes while a network is traced; nothing is printed."""
    logger, handler = logging.getLogger(SHAPES), Conditions()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def untraceable(error: BaseException, axes: Collection[str]) -> ExportError:
    """What the exporter raised as an error that says which line to change, and how."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(map(str, chain))
    expected = f"a network that torch.export can trace with dynamic {', '.join(sorted(axes))}"
    place = next(filter(None, map(place_of, reversed(chain))), "")
    if "data-dependent" in text:
        return ExportError(
            expected,
            got=f"a Python branch on values{place}",
            fix="choose with torch.where(condition, a, b), or torch.cond: a number taken out of a "
            "tensor (.item(), int(), bool(), if) cannot steer Python code, as one graph must serve "
            "all inputs",
        )
    return ExportError(
        expected,
        got=reason(error) + place,
        fix="a branch on values or a size turned into a Python number is the usual cause: choose "
        "another backbone or change the module's code",
    )


def constant(tensor: str, place: int, size: int, watched: Conditions) -> ExportError:
    """An axis that shall be dynamic came out as a number."""
    return ExportError(
        f"axis {place} of {tensor} to be dynamic",
        got=f"the constant {size}{watched.place(constant=True)}",
        fix="take no size for granted: -1 in view and reshape, no int(), len() or range() of a "
        "size, no buffer of a fixed length along it; or declare the axis as a number. A backbone "
        "that does so is of no use here: choose another",
    )


def hold_ranges(
    program: torch.export.ExportedProgram, spec: ModelSpec, watched: Conditions
) -> None:
    """Refuse a trace that holds for some sizes of a dynamic axis only.

    The exporter narrows an axis silently where the code branches on its size.

    Raises:
        ExportError: naming the axis, its sizes, and the line of the user's code.
    """
    known: dict[str, list[int]] = {"batch": [1], **spec.preprocess.get("sizes", {})}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = program.graph_signature.user_inputs
    for tensor, name in zip(spec.inputs, names, strict=True):
        shape = nodes[str(name)].meta["val"].shape
        for axis, size in zip(tensor.shape, shape, strict=True):
            if isinstance(axis, int) or isinstance(size, int):
                continue
            range_ = program.range_constraints.get(size.node.expr)
            if range_ is None:
                continue
            # An exporter that saw two rows notes "from 2 on"; smaller ones are answered all the
            # same. A size that the network itself refuses need not be in the graph either.
            short = range_.lower > 2 and any(n < range_.lower for n in known.get(axis, ()))
            if not short and range_.upper >= _most(spec, axis):
                continue
            raise ExportError(
                f"a graph for every size of the axis {axis} of {tensor.name}",
                got=f"one for {range_.lower} to {range_.upper} only{watched.place(constant=False)}",
                fix="remove the branch on the size from the code, or declare the bound when you "
                f"import the model: --input '{tensor.name}:{tensor.dtype}[...,{axis}<=SIZE]'",
            )


def _most(spec: ModelSpec, axis: str) -> int:
    """The largest size that an axis shall have."""
    if axis in (bounds := spec.preprocess.get("axes", {})):
        return int(bounds[axis][1])
    longest = spec.preprocess.get("max_length") if axis == "sequence" else None
    return int(longest or LARGE)


def reason(error: BaseException) -> str:
    """The first line of what is at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
