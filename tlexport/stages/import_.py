"""A model that somebody already has becomes a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from tlexport import networks, plugins
from tlexport.bundle import Bundle, Draft, fill
from tlexport.errors import DataError, OptionError
from tlexport.files import atomic_folder
from tlexport.importers import ANY_SIZE, Imported, _declared, _flat, _unsteady
from tlexport.measure.compare import all_alike
from tlexport.options import ImportOptions, RuntimeOptions
from tlexport.progress import Progress, silent
from tlexport.reports import ImportReport
from tlexport.runtimes import connect, reference_of
from tlexport.spec import ModelSpec, Tensors, TensorSpec
from tlexport.stages import _golden, _probing
from tlexport.stages._output import model_name, refuse_existing

BATCH = 8


def import_model(
    output: Path | str,
    options: ImportOptions,
    *,
    progress: Progress = silent,
) -> ImportReport:
    """Take a model in: ask it until its outputs and free axes are known, and write the bundle.

    Golden samples are the user's own (`samples`), or drawn within the declared ranges; golden
    outputs are the original network's answers. An ONNX file has no original: its golden outputs
    are those that came with the samples, or its own without ONNX Runtime's optimisations.

    Raises:
        OptionError: not one model is named, it is not to be had, or its inputs are not declared.
        DataError: weights, file or samples are not usable, or the model answers at random.
        SpecError: it does not take what is declared, or answers something else than rows.
        BundleError: `output` exists (without `force`) or cannot be written.
    """
    output = Path(output)
    refuse_existing(output, force=options.force)
    importer = plugins.load("importers", _chosen(options))
    progress("import", 0, 3)
    taken: Imported = importer.read(options)
    taken = dataclasses.replace(taken, labels=_labels(options, taken))
    progress("import", 1, 3)
    with atomic_folder(output, replace=options.force) as folder:
        files = _keep(taken, folder)
        with _asking(folder, taken, files) as ask:
            found = _find_out(taken, ask, options)
        progress("import", 2, 3)
        draft = Draft(
            spec=_spec(options.name or model_name(output), taken, found),
            network=taken.record | {"outputs": found.raw_names},
            inputs=found.given.inputs,
            outputs=found.answers,
            raw=found.given.raw,
            files=taken.files,
            weights=files[0],
            beside=files[1:],
            original=taken.network is not None,
            answered_by=found.answered_by,
        )
        bundle = fill(folder, draft)
        report = _report(str(output), taken, found, bundle)
        bundle.write_report("import", report)
    progress("import", 3, 3)
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """What asking brought: golden samples with their answers, outputs, sizes of free axes."""

    given: _golden.Given
    answers: Tensors
    raw_names: list[str]
    outputs: tuple[TensorSpec, ...]
    specs: tuple[TensorSpec, ...]
    others: dict[str, list[int]]
    answered_by: Literal["original", "samples", "file"]
    notes: list[str]


def _chosen(options: ImportOptions) -> str:
    known = plugins.names("importers")
    named = [name for name in known if getattr(options, name, None) is not None]
    if len(named) != 1:
        raise OptionError(
            f"one of {', '.join('--' + name for name in known)}",
            got=", ".join("--" + name for name in named) or "none of them",
            fix="name the one model to take in",
        )
    return named[0]


def _labels(options: ImportOptions, taken: Imported) -> tuple[str, ...]:
    if options.labels is None:
        return taken.labels
    path = Path(options.labels)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"labels, one a line, in {options.labels!r}",
            got=str(error),
            fix="pass a text file with a label a line, in the order of the network's outputs",
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(set(labels)) < len(labels) or len(labels) < 2:
        raise DataError(
            "two labels or more, all different, one a line",
            got=f"{len(labels)} in {options.labels!r}, {len(set(labels))} of them different",
            fix="pass a file with a label a line, in the order of the network's outputs",
        )
    return labels


def _keep(taken: Imported, folder: Path) -> tuple[str, ...]:
    """Put the weights into the bundle's folder; their files, the one to open first."""
    if taken.keep is not None:
        return taken.keep(folder)
    assert taken.network is not None
    networks.save(taken.network, folder / "weights.safetensors")
    return ("weights.safetensors",)


@contextlib.contextmanager
def _asking(folder: Path, taken: Imported, files: tuple[str, ...]) -> Iterator[_probing.Ask]:
    """The model as a function of arrays: in PyTorch, or a file in ONNX Runtime as it is written."""
    if taken.network is not None:
        yield _flat.asking(taken.network, taken.names)
        return
    spec = ModelSpec(name="model", task=taken.task, inputs=taken.inputs, outputs=taken.outputs)
    draft = Draft(
        spec=spec,
        network=taken.record,
        inputs={},
        outputs={},
        raw=[],
        weights=files[0],
        beside=files[1:],
        original=False,
        answered_by="file",
    )
    runtime = connect("ort@cpu-plain", fill(folder, draft), RuntimeOptions())
    try:
        yield lambda inputs: dict(runtime(inputs))
    finally:
        runtime.close()


def _find_out(taken: Imported, ask: _probing.Ask, options: ImportOptions) -> _Found:
    given = _golden.given(taken, options)
    if given is None:
        model = _golden.ranged(taken, ask)
        given = _golden.drawn(taken, model, options)
    else:
        model = _probing.Model(ask=ask, inputs=taken.inputs, bounds=taken.bounds)
    inputs, network = given.inputs, taken.network
    others = _probing.other_sizes(model, inputs)
    outputs = _probing.outputs_of(model, inputs, others)
    _probing.hold_steady(
        model, inputs, lambda a, b: _unsteady.blame(network, a, b) if network is not None else ""
    )
    outputs = tuple(_as_written(tensor, taken.outputs) for tensor in outputs)
    raw_names, outputs = _named(outputs, options, {tensor.name for tensor in model.inputs})
    found = _golden.asked(ask, inputs, BATCH if model.batched else 1)
    answers = {t.name: found[raw] for raw, t in zip(raw_names, outputs, strict=True)}
    _hold_labels(taken, outputs)
    answered_by, notes = _golden.compared(given, answers, original=network is not None)
    if answered_by == "samples":
        answers = {name: given.extra[name] for name in answers}
    notes += [
        f"{name} is the same for all {len(array)} samples: nothing can be told apart by it"
        for name, array in answers.items()
        if len(array) > 1 and all_alike(array)
    ]
    return _Found(
        given=given,
        answers=answers,
        raw_names=raw_names,
        outputs=outputs,
        specs=model.inputs,
        others=others,
        answered_by=answered_by,
        notes=notes,
    )


def _as_written(seen: TensorSpec, written: tuple[TensorSpec, ...]) -> TensorSpec:
    """An output as it was seen, with the constants that a file declares for it."""
    declared = next((tensor for tensor in written if tensor.name == seen.name), seen)
    shape = tuple(
        own if isinstance(own, int) else found
        for own, found in zip(declared.shape, seen.shape, strict=True)
    )
    return TensorSpec(name=seen.name, dtype=seen.dtype, shape=shape)


def _named(
    outputs: tuple[TensorSpec, ...], options: ImportOptions, inputs: set[str]
) -> tuple[list[str], tuple[TensorSpec, ...]]:
    """The outputs to keep by their own names, and as the user calls them.

    Raises:
        OptionError: names that choose nothing, and not as many as there are; or that are taken.
    """
    own = [tensor.name for tensor in outputs]
    wanted = list(options.output_names) or own
    if options.onnx is not None and wanted != own:
        raise OptionError(
            f"the outputs of the file: {', '.join(own)}",
            got=f"--output-name {' --output-name '.join(wanted)}",
            fix="leave --output-name out: an ONNX file is taken over as it is",
        )
    if set(wanted) <= set(own):
        chosen = wanted
    elif len(wanted) == len(own):
        chosen = own
    else:
        raise OptionError(
            f"some of the outputs {', '.join(own)}, or a name for each",
            got=f"--output-name {' --output-name '.join(wanted)}",
            fix="name outputs that there are to choose, or all to rename them",
        )
    taken = {name for name in wanted if wanted.count(name) > 1 or name in inputs}
    if taken:
        raise OptionError(
            "names of outputs that nothing else has",
            got=f"{', '.join(sorted(taken))} twice, or for an input too",
            fix=f"name all {len(wanted)} outputs: --output-name NAME, once per output, in order",
        )
    by_name = {tensor.name: tensor for tensor in outputs}
    pairs = zip(wanted, chosen, strict=True)
    return chosen, tuple(msgspec.structs.replace(by_name[raw], name=name) for name, raw in pairs)


def _hold_labels(taken: Imported, outputs: tuple[TensorSpec, ...]) -> None:
    shape = ("batch", len(taken.labels))
    batched = [t for t in outputs if t.shape in (shape, (1, len(taken.labels)))]
    if taken.labels and not batched:
        raise DataError(
            f"an output [batch, {len(taken.labels)}] for {len(taken.labels)} labels",
            got=", ".join(_declared.written(tensor) for tensor in outputs),
            fix="pass a --labels file with a line for each, or none where nothing is classified",
        )


def _spec(name: str, taken: Imported, found: _Found) -> ModelSpec:
    preprocess = taken.preprocess
    if taken.task == "tensors":
        bounded = {n: list(b) for n, b in taken.bounds.items() if n != "batch" and b != ANY_SIZE}
        preprocess = {
            **preprocess,
            "inputs": {tensor.name: [tensor.dtype, list(tensor.shape)] for tensor in found.specs},
            "sizes": found.others,
            "axes": bounded,
        }
    return ModelSpec(
        name=name,
        task=taken.task,
        inputs=found.specs,
        outputs=found.outputs,
        labels=taken.labels,
        preprocess=preprocess,
    )


def _report(output: str, taken: Imported, found: _Found, bundle: Bundle) -> ImportReport:
    return ImportReport(
        bundle=output,
        importer=str(taken.record["importer"]),
        source=taken.source,
        task=taken.task,
        inputs=tuple(map(_declared.written, found.specs)),
        outputs=tuple(map(_declared.written, found.outputs)),
        labels=taken.labels,
        samples=found.given.origin,
        golden=len(found.given.raw),
        reference=reference_of(bundle),
        notes=(*taken.notes, *found.notes),
    )
