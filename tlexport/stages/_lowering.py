"""The way to a lower precision: tried, judged, timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle
from tlexport.errors import ExportError, OptionError
from tlexport.files import scratch_folder
from tlexport.options import ExportOptions
from tlexport.progress import Progress
from tlexport.reports import AccuracyCost, Interval, PrecisionReport
from tlexport.spec import rows
from tlexport.stages._labelled import Answer, Labelled
from tlexport.targets._lowering import Lowered, Lowering, Wish
from tlexport.traffic.race import race

POINT = 0.01
"""What a form may cost to be chosen for its speed, where no other limit is given."""

MUCH = 1.1
"""Times as fast that dynamic scales must be to be taken: with static ones rows are independent."""

ALIKE = 2.0
"""Times the least error that a form may have where there are no labels to judge by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A lowered model that was written, opened and asked."""

    form: str
    artifact: Artifact
    folder: Path
    lowered: Lowered
    answer: Answer
    cost: AccuracyCost | None
    speedup: Interval | None = None

    @property
    def error(self) -> float:
        """Distance from fp32's answers on golden samples."""
        return float(self.lowered.facts["error"])

    @property
    def lost(self) -> float:
        """Accuracy lost; where nobody judged, 0."""
        return max(0.0, -self.cost.difference.value) if self.cost else 0.0


class Precision:
    """One precision of a bundle's fp32 artifact."""

    def __init__(
        self,
        bundle: Bundle,
        options: ExportOptions,
        labelled: Labelled | None,
        progress: Progress,
    ) -> None:
        self._bundle = bundle
        self._options = options
        self._labelled = labelled
        self._progress = progress
        self._target = able(options)

    def make(self, file: Path) -> tuple[Artifact, PrecisionReport]:
        """Write the artifact, made of the fp32 file, into the bundle.

        Raises:
            ExportError: the model cannot be lowered, or no way holds the accuracy.
        """
        with scratch_folder(self._bundle.root, ".export.") as place:
            (place / "work").mkdir()
            self._place, self._fp32 = place, self._target.open_file(file)
            way = self._target.lowering(self._options.precision, self._wish(file, place / "work"))
            trial = self._held(way, self._chosen(way))
            if trial.speedup is None:
                trial = dataclasses.replace(trial, speedup=self._timed(trial))
            artifact = msgspec.structs.replace(
                trial.artifact,
                options={**trial.artifact.options, "left": sorted(trial.lowered.left)},
            )
            artifact = noted(artifact, asked(self._options, self._labelled))
            self._bundle.add_artifact(artifact, trial.folder)
        return artifact, self._report(trial)

    def _wish(self, file: Path, work: Path) -> Wish:
        golden = self._bundle.golden()
        each = [rows(golden.inputs, [row]) for row in range(len(golden.samples))]
        samples: list[Any] = each
        if self._labelled is not None and self._options.precision == "int8":
            samples = self._labelled.samples()
        return Wish(
            source=file,
            samples=samples,
            golden=each,
            work=work,
            calibration=self._options.calibration,
            quantization=self._options.quantization,
            io=self._options.io_precision,
            progress=self._progress,
        )

    def _chosen(self, way: Lowering) -> Trial:
        """Of the forms that hold, the fastest; where none does, the one that loses least."""
        trials = [self._tried(way, form) for form in way.forms]
        if len(trials) == 1:
            return trials[0]
        trials = [dataclasses.replace(t, speedup=self._timed(t)) for t in trials]
        limit = self._options.budget
        limit = POINT if limit is None else limit
        least = min(trial.error for trial in trials)
        good = [t for t in trials if t.lost <= limit and (t.cost or t.error <= ALIKE * least)]
        if not good:
            return min(trials, key=lambda trial: (trial.lost, trial.error))
        return max(good, key=_worth)

    def _held(self, way: Lowering, trial: Trial) -> Trial:
        """The trial, or one of its form with as many nodes in fp32 as the accuracy needs.

        Doubled until it holds, then halved in between.

        Raises:
            ExportError: it does not hold as long as anything is lowered; each step is told.
        """
        budget = self._options.budget
        if budget is None or trial.lost <= budget:
            return trial
        order = way.dearest(trial.form)
        steps = [_step(trial)]
        below, count, best = 0, 1, None
        while best is None:
            if count >= len(order):
                raise self._too_dear(steps)
            tried = self._tried(way, trial.form, order[:count])
            steps.append(_step(tried))
            if tried.lost <= budget:
                best = tried
            else:
                below, count = count, count * 2
        while count - below > 1:
            middle = (below + count) // 2
            tried = self._tried(way, trial.form, order[:middle])
            if tried.lost <= budget:
                best, count = tried, middle
            else:
                below = middle
        return best

    def _tried(self, way: Lowering, form: str, left: Collection[str] = ()) -> Trial:
        lowered = way.make(form, left)
        folder = self._place / f"{form}-{len(left)}"
        folder.mkdir()
        artifact = self._target.finish(self._bundle, folder, lowered, self._options)
        answer = self._target.open_file(folder / artifact.file)
        cost = None
        if self._labelled is not None:
            cost = self._labelled.cost(self._fp32, answer, self._progress)
        return Trial(
            form=form, artifact=artifact, folder=folder, lowered=lowered, answer=answer, cost=cost
        )

    def _timed(self, trial: Trial) -> Interval:
        question = rows(self._bundle.golden().inputs, [0])
        self._progress("time against fp32", 0, 1)
        found = race(lambda: trial.answer(question), lambda: self._fp32(question))
        self._progress("time against fp32", 1, 1)
        return found

    def _too_dear(self, steps: list[str]) -> ExportError:
        fix = "pass a larger --max-accuracy-drop, more training data, or another --precision"
        if self._options.precision == "int8":
            fix = "try another --calibration or --quantization, or a larger --max-accuracy-drop"
        return ExportError(
            f"{self._options.precision} that loses at most {self._options.budget:g} of accuracy",
            got="; ".join(steps),
            fix=fix,
        )

    def _report(self, trial: Trial) -> PrecisionReport:
        facts, labelled = trial.lowered.facts, self._labelled
        assert trial.speedup is not None
        notes = trial.lowered.notes + (labelled.notes if labelled else ())
        budget, cost = self._options.budget, trial.cost
        if budget is not None and cost is not None and cost.difference.low < -budget:
            notes += (
                f"{cost.examples} held-out examples are too few to be sure of {budget:g}: the "
                f"interval reaches {cost.difference.low:+.3f}",
            )
        calibrated = ""
        if "calibration" in facts:
            calibrated = f"training examples of {labelled.name}" if labelled else "golden samples"
        return PrecisionReport(
            form=trial.form,
            calibration=facts.get("calibration", ""),
            calibrated_on=calibrated,
            nodes=trial.lowered.nodes,
            left=trial.lowered.left,
            error=trial.error,
            accuracy=trial.cost,
            speedup=trial.speedup,
            notes=notes,
        )


def able(options: ExportOptions) -> ModuleType:
    """The target, which knows the precision asked for.

    Raises:
        OptionError: there is no such target, or it knows fp32 alone.
    """
    target = plugins.load("targets", options.target)
    known = getattr(target, "PRECISIONS", {})
    if options.precision not in ("fp32", "auto", *known) or (
        options.precision == "auto" and not known
    ):
        raise OptionError(
            f"a precision of target {options.target}: {', '.join(('fp32', *known))}",
            got=options.precision,
            fix="name one of these, or another --target",
        )
    return target


def asked(options: ExportOptions, labelled: Labelled | None) -> dict[str, Any]:
    """What an artifact was made for; another answer is another artifact."""
    return {
        "data": labelled.digest if labelled else None,
        "max_accuracy_drop": options.budget,
        "calibration": options.calibration,
        "quantization": options.quantization,
        "io_precision": options.io_precision,
        "seed": options.seed,
    }


def noted(artifact: Artifact, wishes: dict[str, Any]) -> Artifact:
    """The record with what it was made for."""
    return msgspec.structs.replace(artifact, options={**artifact.options, "asked": wishes})


def _worth(trial: Trial) -> float:
    assert trial.speedup is not None
    return trial.speedup.value / (MUCH if trial.form == "dynamic" else 1.0)


def _step(trial: Trial) -> str:
    assert trial.cost is not None
    change = trial.cost.difference
    return (
        f"{change.value:+.3f} ({change.low:+.3f} .. {change.high:+.3f}) with "
        f"{len(trial.lowered.left)} of {trial.lowered.nodes} nodes in fp32"
    )
