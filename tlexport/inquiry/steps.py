"""What a bundle's pipeline of raw files is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, ServerError
from tlexport.options import PackageOptions
from tlexport.runtimes import Runtime
from tlexport.serving import pipeline
from tlexport.spec import ModelSpec

ROUNDED = 1e-6
"""A probability in float32 may be off by that much more."""
NEAR = 0.05
"""Share of the scale within which two labels are as good as one, at most."""
MOST = 700.0
"""The largest exponent that a float64 holds."""


def pipeline_around(
    home: Bundle, spec: ModelSpec, options: PackageOptions, before: int | None
) -> pipeline.Pipeline | None:
    """The pipeline around a version, with all golden files; None where it shall have none.

    `before` is how many labels the one tells that is there already, if any.

    Raises:
        OptionError, BundleError: as from `pipeline_for`; or labels are asked for of no pipeline.
    """
    if before is None and not options.pipeline:
        if options.top:
            raise OptionError(
                "--pipeline, or a model that has one, for --top",
                got=f"--top {options.top} alone",
                fix="pass --pipeline too, or leave --top out",
            )
        return None
    return pipeline_for(home, spec, options.top or before or 1)


def pipeline_for(home: Bundle, spec: ModelSpec, top: int) -> pipeline.Pipeline:
    """The pipeline around a model whose tensors are as `spec` says, with all golden files.

    Raises:
        OptionError: raw files mean nothing to the model, it tells no labels, or not as many.
        BundleError: its golden files are not there, or cannot be read any more.
    """
    task = plugins.load("tasks", spec.task)
    reader = getattr(task, "RAW", None)
    wanted = "a model of images, texts or sound for --pipeline"
    fix = "leave --pipeline out, and send arrays"
    if reader is None:
        raise OptionError(
            wanted,
            got=f"one of {spec.task!r}: nothing tells how a file becomes its arrays",
            fix=f"{fix}; or import it again with what `tlexport import --help` has to say it",
        )
    count, first = len(spec.labels), spec.outputs[0]
    if not count or len(first.shape) != 2 or first.shape[1] != count:
        raise OptionError(
            "a model that scores labels, float [batch, labels], for --pipeline",
            got=f"{count} labels for {first.name!r} [{', '.join(map(str, first.shape))}]",
            fix=fix,
        )
    if top > count:
        raise OptionError(
            f"--top of at most the {count} labels there are",
            got=str(top),
            fix=f"pass --top {count}",
        )
    _hold_inputs(home, spec, reader)
    golden = home.golden()
    raw = tuple(home.raw(sample) for sample in golden.samples)
    decided = task.decide(home.spec, golden.outputs)
    return pipeline.Pipeline(
        reader=Path(str(reader.__file__)),
        files=home.files(),
        raw=raw,
        golden=pipeline.Golden(
            raw=tuple(f"{pipeline.GOLDEN_FILES}/{file.name}" for file in raw),
            labels=tuple(tuple(spec.labels[n] for n in row[:top]) for row in decided.order),
            probabilities=tuple(tuple(map(float, row[:top])) for row in decided.probabilities),
            margins=tuple(float(row[0] - row[1:2].sum()) for row in decided.probabilities),
            scale=float(np.abs(golden.outputs[first.name]).max()),
        ),
        top=top,
    )


def _hold_inputs(home: Bundle, spec: ModelSpec, reader: ModuleType) -> None:
    """Refuse a model whose golden files do not become the tensors that it takes."""
    samples = home.golden().samples
    missing = [sample.file for sample in samples if not home.raw(sample).is_file()]
    expected = f"the golden samples as they came, in {str(home.root / 'golden' / 'raw')!r}"
    if missing:
        raise BundleError(
            expected,
            got=f"no {', '.join(missing[:3])}",
            fix="restore the bundle's folder, or train or import again",
        )
    raw = [home.raw(sample) for sample in samples]
    inputs, broken = reader.arrays(raw, home.spec.preprocess, home.files())
    if broken:
        row = next(iter(broken))
        raise BundleError(
            expected,
            got=f"{samples[row].file} cannot be read: {broken[row]}",
            fix="install the versions of the decoders that bundle.json names, or train again",
        )
    declared = [tensor.name for tensor in spec.inputs]
    if set(declared) != set(inputs):
        raise OptionError(
            f"a model that takes {', '.join(inputs)} for --pipeline",
            got=", ".join(declared),
            fix="leave --pipeline out, and send arrays",
        )


@dataclass(frozen=True)
class Told:
    """What a served pipeline says of an item, best first; or why it cannot."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""


@dataclass(frozen=True)
class Held:
    """How far a served answer is off the golden one at its worst, and what is allowed there.

    `same` says whether it tells the same label first, or one that is as good.
    """

    off: float
    allowed: float
    same: bool

    @property
    def fits(self) -> bool:
        """Whether it is the golden answer; not-a-number is not within anything."""
        return self.off <= self.allowed and self.same


def held(golden: pipeline.Golden, row: int, told: Told, share: float) -> Held:
    """A served answer against the golden one, of scores that may be off by a share of their scale.

    Scores that are each off by e change a probability by a factor of up to exp(2 e).
    """
    want = np.array(golden.probabilities[row], np.float64)
    got = np.array(told.probabilities, np.float64)
    if got.shape != want.shape:
        got = np.full_like(want, np.nan)
    off = np.abs(got - want)
    allowed = want * np.expm1(min(2 * share * golden.scale, MOST)) + ROUNDED
    near = want[0] * np.expm1(min(2 * min(share, NEAR) * golden.scale, MOST)) + ROUNDED
    worst = int(np.argmax(off / allowed))  # one that is not a number, if there is one
    same = told.labels[:1] == golden.labels[row][:1] or golden.margins[row] <= near
    return Held(float(off[worst]), float(allowed[worst]), bool(same))


def raw_answers(runtime: Runtime, items: Sequence[bytes]) -> list[Told]:
    """A pipeline's answers to one request of raw items; a refusal of a single one is its error.

    Raises:
        ServerError: the request failed as a whole.
    """
    if not items:
        return []
    column = np.empty((len(items), 1), dtype=np.object_)
    column[:, 0] = items
    try:
        answer = runtime({pipeline.RAW: column})
    except ServerError as error:
        if len(items) == 1 and pipeline.REFUSED in error.got:
            return [Told((), (), error.got.partition(", ")[2])]
        raise
    found = []
    for row in range(len(items)):
        why = answer[pipeline.ERROR][row, 0].decode()
        labels = tuple(label.decode() for label in answer[pipeline.LABEL][row])
        likely = tuple(float(p) for p in answer[pipeline.PROBABILITY][row])
        found.append(Told((), (), why) if why else Told(labels, likely))
    return found
