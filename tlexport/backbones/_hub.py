"""A Hugging Face model by hub name, folder or package."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import initialization

from tlexport.errors import DataError, OptionError


def place(name: str) -> str:
    """What transformers shall be asked for: a folder's path, or the hub's name as it came.

    Raises:
        OptionError: a folder or package is named that is not there.
    """
    if name.startswith("package:"):
        return str(_in_package(name.removeprefix("package:")))
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")):
        raise OptionError(
            f"a folder {name!r} with config.json, as `save_pretrained` writes it",
            got="a file" if folder.is_file() else "no config.json" if folder.exists() else "none",
            fix="name the folder of the model",
        )
    return name


def config(place: str, known: Sequence[str] = ()) -> transformers.PretrainedConfig:
    """The configuration of a model; code that the model brings along is not run.

    Raises:
        OptionError: the hub does not answer or has no such model, or the model needs its own code.
        DataError: config.json is damaged or of a kind that transformers does not know.
    """
    local = (Path(place) / "config.json").is_file()
    try:
        with quiet():
            found = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and its own
        why = " ".join(str(error).split())
        if "trust_remote_code" in why or "custom code" in why:
            raise own_code(place) from error
        if local:
            raise DataError(
                f"a model configuration in {place!r}",
                got=f"{type(error).__name__}: {why[:200]}",
                fix="restore the folder, or install the transformers that wrote it",
            ) from error
        near = difflib.get_close_matches(place, known, n=1, cutoff=0.6)
        raise OptionError(
            "a model of the Hugging Face hub, or a folder that `save_pretrained` wrote",
            got=f"{place!r}: {why[:200]}",
            fix=(f"did you mean {near[0]!r}? Else " if near else "")
            + "check the name and the network, or pass transformers/FOLDER",
        ) from error
    if getattr(found, "auto_map", None):
        raise own_code(place)
    return cast(transformers.PretrainedConfig, found)


def extractor(place: str) -> dict[str, Any]:
    """What preprocessor_config.json says; empty where there is none: the library's defaults hold.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with quiet():
            found, _ = transformers.FeatureExtractionMixin.get_feature_extractor_dict(place)
    except OSError as error:
        if (Path(place) / "preprocessor_config.json").is_file():
            raise DataError(
                f"a preprocessor_config.json in {place!r}",
                got=" ".join(str(error).split())[:200],
                fix="restore the file",
            ) from error
        return {}
    return found


def own_code(place: str) -> OptionError:
    """The error for a model that brings its own code."""
    return OptionError(
        "a model whose architecture transformers has itself",
        got=f"{place!r} brings its own code (auto_map in config.json), which is not run",
        fix="use a model without, or remove auto_map where transformers knows its model_type",
    )


def plain(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """A configuration as JSON's own types, complete: defaults change with versions."""
    found = cast(dict[str, Any], json.loads(config.to_json_string(use_diff=False)))
    return {key: value for key, value in found.items() if key != "_name_or_path"}


def restored(record: dict[str, Any]) -> transformers.PretrainedConfig:
    """The configuration that `plain` wrote.

    Raises:
        KeyError: it is of a type that this transformers does not know.
    """
    kind = transformers.CONFIG_MAPPING[record["model_type"]]
    return kind.from_dict(dict(record))


def empty(config: transformers.PretrainedConfig, *, started: bool = True) -> Any:
    """The network of a configuration with start weights, float32, in eval mode.

    Not `started`, its weights are whatever lay in memory, for a caller that loads them all: a
    second of BERT-base's export.
    """
    unstarted = getattr(initialization, "no_init_weights", contextlib.nullcontext)
    with quiet(), contextlib.nullcontext() if started else unstarted():
        return cast(Any, transformers.AutoModel).from_config(config, dtype=torch.float32).eval()


def trained(place: str, what: Any = transformers.AutoModel) -> Any:
    """The network with its weights, float32, of safetensors alone.

    Raises:
        OSError: there are none, or the hub does not answer.
    """
    with quiet():
        return what.from_pretrained(place, use_safetensors=True, dtype=torch.float32).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's own bars and advice off the terminal."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    told = cast(Any, transformers.utils.logging)
    bars = told.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    told.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            told.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_package(text: str) -> Path:
    name, _, inner = text.partition("/")
    try:
        listed = importlib.metadata.distribution(name).files or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise OptionError(
            f"an installed package {name!r}", got="it is not installed", fix=f"pip install {name}"
        ) from error
    folders = {Path(str(file.locate())).parent for file in listed if file.name == "config.json"}
    found = sorted(
        folder for folder in folders if inner in str(folder) and any(folder.glob("*.safetensors"))
    )
    if len(found) != 1:
        raise OptionError(
            f"one folder with config.json and safetensors in the package {name!r}",
            got=", ".join(map(str, found)) or "none",
            fix="name it: transformers/package:NAME/FOLDER",
        )
    return found[0]
