"""A Hugging Face folder, as `save_pretrained` wrote it."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import torch
import transformers

from tlexport.backbones import _hub, _speech, _tokenizer
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.importers import (
    Bounds,
    Imported,
    _clips,
    _declared,
    _flat,
    _hub_folder,
    _images,
    _sequences,
    _state,
)
from tlexport.options import ImportOptions
from tlexport.spec import TensorSpec

ATTENTION = "eager"
"""Every model has it, it is traced without detours, and none is fetched from a hub."""


class Logits(torch.nn.Module):
    """A classifier's logits alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: torch.Tensor) -> Any:
        """The values that the model takes -> logits [batch, labels]."""
        return self.model(values).logits


def read(options: ImportOptions) -> Imported:
    """The model, its labels, preprocessing and tokenizer.

    Raises:
        OptionError: no such folder, code that nobody trusted, or inputs that must be declared.
        DataError: its weights are pickled, or not all of its architecture's.
    """
    folder = Path(str(options.huggingface))
    if options.weights is not None:
        raise OptionError(
            "--huggingface FOLDER without --weights",
            got=f"--weights {options.weights}",
            fix="leave it out: the folder holds its weights",
        )
    found = _hub_folder.config(folder, trust=options.trust_remote_code)
    model = _loaded(folder, found, options)
    record: dict[str, Any] = {
        "importer": "huggingface",
        "architecture": type(model).__name__,
        "config": model.config.to_diff_dict() | {"model_type": model.config.model_type},
    }
    if found.get("auto_map"):
        record |= {
            "auto": _auto(found),
            "folder": str(folder.resolve()),
            "code_sha256": _hub_folder.code(folder),
        }
    takes = str(model.main_input_name)
    if takes == "pixel_values":
        return _images_of(model, folder, record)
    if takes == "input_ids":
        return _texts_of(model, folder, record, options)
    extractor = _clips.extractor_of(model, folder) if not options.inputs else None
    if extractor is not None and _classifies(model, "Classification"):
        return _clips_of(model, folder, record | {"extractor": extractor})
    return _others_of(model, folder, record, options)


def network(bundle: Bundle) -> torch.nn.Module:
    """The model of a bundle, built from its configuration; the folder is not needed.

    Raises:
        BundleError: transformers has no such model any more, or its weights are others.
    """
    record = bundle.manifest.network
    try:
        with _hub.quiet():
            model = _built(record)
    except Exception as error:  # transformers raises nearly anything on a config it does not know
        raise BundleError(
            f"the model {record.get('architecture')} in transformers {transformers.__version__}",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            fix="install the version in bundle.json, or import the folder again",
        ) from error
    return _state.restore(_wrapped(model, record, bundle.spec.preprocess), bundle)


def _built(record: dict[str, Any]) -> Any:
    if "folder" in record:
        folder = Path(record["folder"])
        if not folder.is_dir() or _hub_folder.code(folder) != record["code_sha256"]:
            raise ValueError(f"the code in {str(folder)!r} is not what was trusted at the import")
        kind = getattr(transformers, record["auto"])
        return kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=True
        )
    settings = dict(record["config"])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    config._attn_implementation = ATTENTION
    return getattr(transformers, record["architecture"])(config)


def _loaded(folder: Path, found: dict[str, Any], options: ImportOptions) -> Any:
    """The model with its weights, all of them.

    Raises:
        DataError: tensors are missing or of another shape, or the files are damaged.
        OptionError: the architecture is not known.
    """
    names = found.get("architectures") or ["AutoModel"]
    trusted = bool(found.get("auto_map"))
    kind = getattr(transformers, names[0], None)
    if trusted:
        kind = getattr(transformers, _auto(found))
    elif not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise OptionError(
            f"an architecture of transformers {transformers.__version__}",
            got=f"{names[0]} in {str(folder / 'config.json')!r}",
            fix="install the version that it was saved with",
        )
    try:
        with _hub.quiet():
            loaded: Any = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trusted and options.trust_remote_code,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
            )
        model, info = loaded
    except Exception as error:  # transformers raises nearly anything
        raise DataError(
            f"a {names[0]} in {str(folder)!r}",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            fix="load it with from_pretrained first; save it again with save_pretrained",
        ) from error
    unlike = sorted(map(str, info.get("mismatched_keys") or ()))
    missing = sorted(map(str, info.get("missing_keys") or ()))
    if missing or unlike:
        raise DataError(
            f"all weights of {names[0]}",
            got="; ".join(
                filter(None, (_some(missing, "missing"), _some(unlike, "of another shape")))
            ),
            fix="save the fine-tuned model, head included: without them its answers are random",
        )
    if model.config.is_encoder_decoder and not names[0].endswith("AudioClassification"):
        raise OptionError(
            "a model with one part, an encoder or a decoder",
            got=f"{names[0]}, an encoder with a decoder",
            fix="import its encoder, or a module of your own with --module",
        )
    return model.eval()


def _auto(found: dict[str, Any]) -> str:
    """The class of transformers that finds code which lies in a folder."""
    return next((str(key) for key in found["auto_map"] if key.startswith("AutoModel")), "AutoModel")


def _some(names: list[str], what: str) -> str:
    return f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else ""


def _classifies(model: Any, kind: str) -> bool:
    """Whether it has one label of several per row: then softmax and labels apply."""
    problem = model.config.problem_type
    return (
        type(model).__name__.endswith(kind)
        and model.config.num_labels > 1
        and problem in (None, "single_label_classification")
    )


def _task_notes(model: Any) -> list[str]:
    problem = model.config.problem_type
    if problem == "multi_label_classification":
        return ["several labels may be right at once: no softmax, numbers are compared"]
    if type(model).__name__.endswith("Classification") and model.config.num_labels == 1:
        return ["one label: a regression, numbers are compared"]
    return []


def _wrapped(model: Any, record: dict[str, Any], preprocess: dict[str, Any]) -> torch.nn.Module:
    """The model as the bundle's graph: `record["form"]` says which."""
    form = record["form"]
    if form == "clip":
        return _clips.ClipClassifier(model, record["extractor"])
    if form == "sequence":
        return _sequences.classifier(model)
    if form == "image":
        return _images.Behind(Logits(model), preprocess["mean"], preprocess["std"])
    if form == "pixels":
        inner: torch.nn.Module = _images.Behind(model, preprocess["mean"], preprocess["std"])
        return _flat.Flat(inner, (), record.get("outputs", ()))
    return _flat.Flat(model, record["keywords"], record.get("outputs", ()))


def _images_of(model: Any, folder: Path, record: dict[str, Any]) -> Imported:
    preprocess = _hub_folder.pixels(folder)
    if preprocess is None:
        raise DataError(
            f"preprocessor_config.json in {str(folder)!r}",
            got="none: how images become the model's input is not told",
            fix="save the image processor beside the model: processor.save_pretrained(FOLDER)",
        )
    classifies = _classifies(model, "ForImageClassification")
    record = record | {"form": "image" if classifies else "pixels"}
    common: dict[str, Any] = {
        "network": _wrapped(model, record, preprocess).eval(),
        "record": record,
        "source": f"{folder.name} ({type(model).__name__})",
        "inputs": _images.inputs_of(preprocess),
        "preprocess": preprocess,
        "notes": tuple(_task_notes(model)),
    }
    if not classifies:
        return Imported(**common)
    return Imported(
        **common,
        names=("logits",),
        task="image-classification",
        labels=_hub_folder.labels(model.config.to_dict(), model.config.num_labels),
        raw=functools.partial(_images.drawn, preprocess),
    )


def _texts_of(model: Any, folder: Path, record: dict[str, Any], options: ImportOptions) -> Imported:
    numbers, files = _tokenizer_of(folder, model.config)
    inputs = tuple(
        TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"), legal=(0, most))
        for name, most in (("input_ids", model.config.vocab_size - 1), ("attention_mask", 1))
    )
    inputs = _declared.merged(inputs, options.inputs)
    _, declared = _declared.parse(options.inputs)
    classifies = _classifies(model, "ForSequenceClassification")
    sequence = type(model).__name__.endswith("ForSequenceClassification")
    record = record | {
        "form": "sequence" if sequence else "named",
        "keywords": [tensor.name for tensor in inputs],
    }
    notes = _task_notes(model)
    task = "text-classification"
    if not (classifies and files):
        if classifies:
            notes.append("no tokenizer that fits in the folder: token ids are taken, not texts")
        task = "tensors"
    return Imported(
        network=_wrapped(model, record, {}).eval(),
        inputs=inputs,
        bounds=_longest(model, numbers) | declared,
        record=record,
        source=f"{folder.name} ({type(model).__name__})",
        task=task,
        names=("logits",) if sequence else (),
        labels=_hub_folder.labels(model.config.to_dict(), model.config.num_labels)
        if classifies
        else (),
        preprocess=numbers,
        files=files,
        raw=functools.partial(_hub_folder.texts, files) if task != "tensors" else None,
        notes=tuple(notes),
    )


def _tokenizer_of(folder: Path, config: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Numbers and files of text preprocessing; nothing where the folder has no tokenizer."""
    try:
        return _tokenizer.read(str(folder), config)
    except DataError:
        return {}, {}


def _longest(model: Any, numbers: dict[str, Any]) -> Bounds:
    """As many tokens as preprocessing keeps, else as the model has positions."""
    unknown = types.SimpleNamespace(model_max_length=None)
    most = numbers.get("max_length") or _tokenizer.limit(model.config, unknown)
    return {"sequence": (1, int(most))}


def _clips_of(model: Any, folder: Path, record: dict[str, Any]) -> Imported:
    numbers = _speech.numbers(model.config, record["extractor"])
    record = record | {"form": "clip"}
    return Imported(
        network=_wrapped(model, record, numbers).eval(),
        inputs=_clips.inputs_of(numbers),
        bounds={"samples": (numbers["shortest"], numbers["longest"])},
        record=record,
        source=f"{folder.name} ({type(model).__name__})",
        task="audio-classification",
        names=("logits",),
        labels=_hub_folder.labels(model.config.to_dict(), model.config.num_labels),
        preprocess=numbers,
        raw=functools.partial(_clips.drawn, numbers),
    )


def _others_of(
    model: Any, folder: Path, record: dict[str, Any], options: ImportOptions
) -> Imported:
    """Waveforms and whatever else: as the user declares."""
    takes = str(model.main_input_name)
    inputs, bounds = _declared.parse(options.inputs)
    if not inputs:
        raise OptionError(
            f"the input {takes!r} of {type(model).__name__}, declared",
            got="no --input",
            fix="for waveforms at 16 kHz, normalised: --input "
            f"'{takes}:float32[batch,samples<=160000]=-4..4', or without the range and --samples",
        )
    record = record | {"form": "named", "keywords": [tensor.name for tensor in inputs]}
    audio = _classifies(model, "ForAudioClassification") or _classifies(
        model, "ForSequenceClassification"
    )
    labels = _hub_folder.labels(model.config.to_dict(), model.config.num_labels) if audio else ()
    return Imported(
        network=_wrapped(model, record, {}).eval(),
        inputs=inputs,
        bounds=bounds,
        record=record,
        source=f"{folder.name} ({type(model).__name__})",
        labels=labels,
        notes=(
            *_task_notes(model),
            f"{takes} is taken as it is: its preprocessing is the client's",
        ),
    )
