"""A language model's tokenizer, as preprocessing needs it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import transformers

from tlexport.backbones import _hub
from tlexport.errors import DataError

TOKENIZER = "tokenizer.json"

LONGEST = 512
"""Tokens of a text at most, where neither the model nor the user says less."""

FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
"""One of these holds the vocabulary; without any the library makes an empty tokenizer up."""

SENSIBLE = 1_000_000
"""A `model_max_length` above this is the library's way to say that nobody knows."""


def read(
    place: str, config: transformers.PretrainedConfig
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Numbers and files that `preprocess/text.py` takes: those of the model's own tokenizer.

    Raises:
        DataError: there is none, or it has no form as tokenizer.json.
    """
    folder = Path(place)
    if folder.is_dir() and not any((folder / name).is_file() for name in FILES):
        raise _none(place, f"no {', '.join(FILES)}")
    try:
        with _hub.quiet():
            found = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        content = found.backend_tokenizer.to_str().encode()
    except Exception as error:  # the library raises anything where files are missing
        raise _none(
            place, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    size = found.vocab_size  # without the tokens that were added to it
    if size > config.vocab_size:
        raise DataError(
            f"a tokenizer for the model's {config.vocab_size} tokens",
            got=f"one with {size}",
            fix="take the tokenizer that the model was trained with",
        )
    numbers = {
        "max_length": longest(place, config, found),
        "limit": limit(config, found),
        "pad_id": _token(found, config, ("pad", "eos", "bos", "unk")),
        "empty_id": _token(found, config, ("bos", "cls", "eos", "sep", "unk", "pad")),
        "padding_side": found.padding_side,
        "vocabulary": config.vocab_size,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
    }
    return numbers, {TOKENIZER: content}


def _none(place: str, got: str) -> DataError:
    return DataError(
        f"a tokenizer with {place!r}",
        got=got,
        fix="save it beside the model: tokenizer.save_pretrained(folder) writes tokenizer.json",
    )


def limit(config: transformers.PretrainedConfig, tokenizer: Any) -> int:
    """Tokens that the model takes at most.

    RoBERTa's kind counts positions from after the padding's own, so two of them are no tokens'.
    XLNet's, without an end, say -1.
    """
    positions = getattr(config, "max_position_embeddings", None) or SENSIBLE
    positions = positions if positions > 0 else SENSIBLE
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"):
        positions -= (config.pad_token_id or 0) + 1
    stated = tokenizer.model_max_length
    return int(min(positions, stated if stated and stated < SENSIBLE else positions))


def longest(place: str, config: transformers.PretrainedConfig, tokenizer: Any) -> int:
    """Tokens kept of a text: as sentence-transformers says beside the model, else up to 512."""
    kept = min(limit(config, tokenizer), LONGEST)
    beside = Path(place) / "sentence_bert_config.json"
    if beside.is_file():
        stated = json.loads(beside.read_text()).get("max_seq_length")
        kept = min(kept, int(stated)) if stated else kept
    return kept


def _token(tokenizer: Any, config: transformers.PretrainedConfig, order: tuple[str, ...]) -> int:
    """The id of the first special token that there is."""
    for owner in (tokenizer, config):
        for kind in order:
            found = getattr(owner, f"{kind}_token_id", None)
            if isinstance(found, list):
                found = found[0] if found else None
            if found is not None and 0 <= found < config.vocab_size:
                return int(found)
    return 0
