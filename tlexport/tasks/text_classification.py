"""Which of the classes a text belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tlexport.backbones import Pretrained
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.files import is_file, is_there
from tlexport.options import DataOptions, TrainOptions
from tlexport.preprocess import text
from tlexport.spec import ModelSpec, Probe, TensorSpec
from tlexport.tasks import (
    Examples,
    Learner,
    Loaded,
    Source,
    _class_folders,
    _frozen,
    _linear,
    _sequences,
    _tables,
)
from tlexport.tasks._augment_nothing import augment as augment
from tlexport.tasks._classify import decide as decide
from tlexport.tasks._classify import scorer as scorer
from tlexport.tasks._linear import assemble as assemble

NAME = "text-classification"
RAW = text
CANDIDATES = (
    "transformers/sentence-transformers/paraphrase-MiniLM-L3-v2",
    "transformers/sentence-transformers/all-MiniLM-L6-v2",
    "transformers/BAAI/bge-small-en-v1.5",
    "transformers/distilbert/distilbert-base-uncased",
    "transformers/sentence-transformers/all-mpnet-base-v2",
)

TEXTS = _class_folders.Kind(
    suffixes=text.suffixes(), name="texts", cost=lambda path: path.stat().st_size
)

POOLINGS = ("mean", "cls", "last")


class TextFeatures(torch.nn.Module):
    """Backbone and pooling: token ids -> float32 [batch, width]."""

    def __init__(self, backbone: torch.nn.Module, pool: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Both int64 [batch, sequence] -> float32 [batch, width]."""
        hidden = self.backbone(input_ids, attention_mask)
        return cast(torch.Tensor, self.pool(hidden, attention_mask))


def read(root: Path, choice: DataOptions | None = None, known: tuple[str, ...] = ()) -> Examples:
    """The labelled texts of a table or of a folder.

    A table is CSV, TSV, JSON lines or Parquet; a folder has tables train and val in it, or a
    folder of text files per class.

    Raises:
        DataError: the layout is another, a row lacks its label, or a class is empty.
    """
    if _tables.found(root):
        return _tables.read(root, choice or DataOptions(), known)
    if is_file(root) or not is_there(root):
        raise DataError(
            f"a table of {', '.join(_tables.SUFFIXES)} or a folder: {str(root)!r}",
            got="a file of another kind" if is_file(root) else "nothing there",
            fix="save the table as one of these, or make a folder of text files per class",
        )
    return _class_folders.read(root, TEXTS, known)


def load(
    sources: Sequence[Source], preprocess: dict[str, Any], files: Mapping[str, bytes] | None = None
) -> Loaded:
    """Tokenise texts: input_ids and attention_mask, int64 [batch, sequence].

    Raises:
        BundleError: the tokenizer is not at hand, or another than the numbers were made with.
    """
    tokenizer = (files or {}).get(text.TOKENIZER)
    if tokenizer is None:
        raise BundleError(
            f"{text.TOKENIZER}, which splits texts into tokens",
            got="none: a server takes token ids, and the tokenizer stays in the bundle",
            fix="name the bundle and the server: tlexport predict BUNDLE --runtime "
            "triton@HOST:PORT FILES",
        )
    try:
        return Loaded(*text.arrays(sources, preprocess, {text.TOKENIZER: tokenizer}))
    except ValueError as error:
        raise BundleError(
            "the tokenizer that the model was trained with", got=str(error), fix="make it again"
        ) from error


def learner(options: TrainOptions, examples: Examples) -> Learner:
    """The backbone with its weights, frozen, and its tokenizer.

    Raises:
        OptionError: there is no such backbone, its weights cannot be had, or more tokens are
            asked for than it takes.
        DataError: the weights are of another network or not safe to load.
    """
    pretrained, origin, record = _frozen.load(options, "text")
    recipe, numbers = record["recipe"], dict(pretrained.preprocess)
    limit = numbers.pop("limit")
    if options.max_length > limit:
        raise OptionError(
            f"--max-length up to the {limit} tokens that {options.backbone} takes",
            got=str(options.max_length),
            fix=f"pass --max-length {limit} or less",
        )
    numbers["max_length"] = options.max_length or numbers["max_length"]
    how = recipe["pooling"] if options.pooling == "auto" else options.pooling
    if how not in POOLINGS:
        raise OptionError(
            f"--pooling of {', '.join(POOLINGS)} for texts", got=how, fix="pass one of these"
        )
    record["pooling"] = how
    extractor = _extractor(pretrained, how)
    one = torch.ones(1, 2, dtype=torch.int64)
    width = _frozen.freeze(extractor, (one, one), options.backbone)
    return Learner(
        extractor=extractor,
        width=width,
        network={**record, "features": width},
        preprocess=numbers,
        source=origin,
        files=pretrained.files,
    )


def spec(name: str, labels: tuple[str, ...], learner: Learner) -> ModelSpec:
    """input_ids, attention_mask: int64 [batch, sequence] -> logits: float32 [batch, classes]."""
    shape = ("batch", "sequence")
    words = learner.preprocess["vocabulary"] - 1
    inputs = (
        TensorSpec(name="input_ids", dtype="int64", shape=shape, legal=(0, words)),
        TensorSpec(name="attention_mask", dtype="int64", shape=shape, legal=(0, 1)),
    )
    return _linear.spec(name, NAME, inputs, labels, learner)


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            and labels that it names.
    """
    return _linear.network(bundle, lambda kept, record: _extractor(kept, record["pooling"]))


def probes(spec: ModelSpec, inputs: dict[str, np.ndarray], most: int) -> list[Probe]:
    """Other lengths and other padding: a text's answer must not depend on its batch mates."""
    return _sequences.probes(inputs, spec.preprocess, most)


def _extractor(pretrained: Pretrained, how: str) -> torch.nn.Module:
    return TextFeatures(pretrained.module, _sequences.Pool(how)).eval()
