from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_text
import tokenizers

from tlexport.preprocess import text


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_text.tokenizer(folder, decoder=False)
    return (folder / "tokenizer.json").read_bytes()


@pytest.fixture
def numbers(content: bytes) -> dict:
    return {
        "max_length": 12,
        "pad_id": 0,
        "empty_id": 1,
        "padding_side": "right",
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
    }


def test_ids_are_the_tokenizers_own_padded_to_the_longest(content, numbers):
    texts = ["a good film", "the cat sat on the mat", ""]
    found = text.batch(texts, numbers, content)
    plain = tokenizers.Tokenizer.from_buffer(content)
    for row, each in enumerate(texts):
        ids = plain.encode(each).ids
        assert found["input_ids"][row, : len(ids)].tolist() == ids
        assert found["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (
            found["input_ids"].shape[1] - len(ids)
        )
    assert {array.dtype for array in found.values()} == {np.dtype("int64")}
    assert not found["input_ids"][found["attention_mask"] == 0].any()


def test_padding_on_the_left_where_the_tokenizer_says_so(content, numbers):
    left = text.batch(["a", "a good film"], {**numbers, "padding_side": "left"}, content)
    right = text.batch(["a", "a good film"], numbers, content)
    for row in range(2):
        kept = left["input_ids"][row][left["attention_mask"][row] > 0]
        assert kept.tolist() == right["input_ids"][row][right["attention_mask"][row] > 0].tolist()
    assert left["attention_mask"][0, 0] == 0
    assert left["attention_mask"][0, -1] == 1


def test_a_long_text_keeps_its_first_tokens_and_both_ends(content, numbers):
    found = text.batch(["the cat " * 15_000], numbers, content)["input_ids"][0]
    plain = tokenizers.Tokenizer.from_buffer(content)
    assert len(found) == 12
    assert [found[0], found[-1]] == [plain.token_to_id("[CLS]"), plain.token_to_id("[SEP]")]


def test_a_hundred_kilobytes_without_a_space_take_no_seconds(content, numbers):
    start = time.process_time()
    text.batch(["x" * 100_000, "\U0001f600" * 25_000], numbers, content)
    assert time.process_time() - start < 5


def test_odd_texts_become_tokens(content, numbers):
    odd = ["\U0001f600\U0001f468‍\U0001f469", "שלום עולם", "a\0b", "\n\t ", "é́", "\ufeffa"]
    found = text.batch(odd, numbers, content)
    assert found["attention_mask"].sum(1).min() >= 2


def test_a_decoders_empty_text_is_one_token(tmp_path, numbers):
    tiny_text.tokenizer(tmp_path, decoder=True)
    content = (tmp_path / "tokenizer.json").read_bytes()
    own = {**numbers, "empty_id": 7, "tokenizer_sha256": hashlib.sha256(content).hexdigest()}
    found = text.batch(["", "a"], own, content)
    assert found["input_ids"][0, 0] == 7
    assert found["attention_mask"].sum(1).tolist() == [1, 1]
    assert text.batch([""], own, content)["input_ids"].tolist() == [[7]]


def test_a_tokenizers_own_padding_and_length_are_set_aside(content, numbers):
    fixed = tokenizers.Tokenizer.from_buffer(content)
    fixed.enable_padding(length=40)
    fixed.enable_truncation(max_length=3)
    own = fixed.to_str().encode()
    numbers = {**numbers, "tokenizer_sha256": hashlib.sha256(own).hexdigest()}
    assert text.batch(["the cat sat"], numbers, own)["input_ids"].shape == (1, 5)


def test_another_tokenizer_is_refused(content, numbers):
    with pytest.raises(ValueError, match="a tokenizer with sha256"):
        text.batch(["a"], {**numbers, "tokenizer_sha256": "0" * 64}, content)


def test_sources_are_read_as_utf_8(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffnaïve".encode())
    assert text.load(tmp_path / "a.txt") == "naïve"
    assert text.load(b"plain") == "plain"
    (tmp_path / "b.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"not UTF-8: byte 0xef at 2; save it as UTF-8"):
        text.load(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        text.load(tmp_path / "none.txt")
