"""Texts to token ids, as training and serving share it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

TAKES = "one text in UTF-8"

TOKENIZER = "tokenizer.json"


def suffixes() -> tuple[str, ...]:
    """Names of text files end so."""
    return (".txt", ".text", ".md")


def load(source: Any) -> str:
    """The text of a source (bytes, or anything with `read_bytes`, such as a path): UTF-8.

    Raises:
        ValueError: it cannot be read or is not UTF-8.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    try:
        return bytes(content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; save it as UTF-8"
        ) from error


def batch(texts: Sequence[str], numbers: dict[str, Any], tokenizer: bytes) -> dict[str, np.ndarray]:
    """Token ids of texts, padded to the longest: both int64 [batch, sequence].

    `tokenizer` is the content of tokenizer.json. Of a long text the first `max_length` tokens are
    kept, the special ones among them; a text without a token becomes `empty_id` alone. Padding is
    `pad_id`, on `padding_side`.

    Raises:
        ValueError: the tokenizer is not the one that the numbers were made with.
    """
    found = opened(tokenizer, numbers["tokenizer_sha256"], numbers["max_length"])
    tokens = [encoding.ids for encoding in found.encode_batch_fast(list(texts))]
    tokens = [ids or [numbers["empty_id"]] for ids in tokens]
    width = max(map(len, tokens), default=1)
    input_ids = np.full((len(tokens), width), numbers["pad_id"], dtype=np.int64)
    attention_mask = np.zeros((len(tokens), width), dtype=np.int64)
    left = numbers["padding_side"] == "left"
    for row, ids in enumerate(tokens):
        where = slice(width - len(ids), None) if left else slice(len(ids))
        input_ids[row, where] = ids
        attention_mask[row, where] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def arrays(
    sources: Sequence[Any],
    numbers: dict[str, Any],
    files: Mapping[str, bytes],
    threads: int | None = None,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Tokenise texts together (sources: bytes, or paths); `files` hold the tokenizer.

    Returns:
        What `batch` gives, the empty text for one that cannot be read; and why, by its place.

    Raises:
        ValueError: the tokenizer is not the one that the numbers were made with.
    """
    texts, broken = [], {}
    for row, source in enumerate(sources):
        try:
            texts.append(load(source))
        except ValueError as error:
            texts.append("")
            broken[row] = str(error)
    return batch(texts, numbers, files[TOKENIZER]), broken


@functools.lru_cache(maxsize=4)
def opened(tokenizer: bytes, sha256: str, max_length: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which may hold a padding and a length of its own."""
    found = hashlib.sha256(tokenizer).hexdigest()
    if found != sha256:
        raise ValueError(f"a tokenizer with sha256 {sha256[:12]} is expected, this is {found[:12]}")
    ready = Tokenizer.from_buffer(tokenizer)
    ready.no_padding()
    ready.enable_truncation(max_length=max_length)
    return ready
