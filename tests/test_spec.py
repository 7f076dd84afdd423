"""Tensors are held against what was declared."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tlexport.errors import SpecError
from tlexport.spec import TRITON_DTYPES, ModelSpec, TensorSpec, rows

IMAGES = TensorSpec(name="images", dtype="uint8", shape=("batch", 4, 4, 3), legal=(0, 255))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=("batch", "length"), legal=(0, 9))
MODEL = ModelSpec(
    name="m",
    task="t",
    inputs=(IMAGES, TOKENS),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    labels=("no", "yes"),
    preprocess={"size": [4, 4], "mean": [0.5, 0.25, 0.125]},
)


def images(count: int = 2) -> np.ndarray:
    return np.zeros((count, 4, 4, 3), np.uint8)


def tokens(*shape: int) -> np.ndarray:
    return np.ones(shape or (2, 5), np.int64)


def test_what_fits_is_taken():
    IMAGES.check(images(1))
    TOKENS.check(tokens(3, 0))
    MODEL.check({"images": images(), "tokens": tokens()})
    assert IMAGES.batched
    assert not TensorSpec(name="x", dtype="bool", shape=()).batched
    assert not TensorSpec(name="x", dtype="bool", shape=(3,)).batched


@pytest.mark.parametrize(
    ("array", "came"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "float32 [2, 4, 4, 3]"),
        (np.zeros((2, 4, 3), np.uint8), "uint8 [2, 4, 3]"),
        (np.zeros((4, 4, 3), np.uint8), "uint8 [4, 4, 3]"),
        (np.zeros((2, 4, 5, 3), np.uint8), "uint8 [2, 4, 5, 3]"),
        (np.zeros((), np.uint8), "uint8 []"),
    ],
)
def test_another_type_rank_or_size_is_refused_with_both_shapes(array, came):
    with pytest.raises(SpecError) as caught:
        IMAGES.check(array)
    assert caught.value.expected == "'images' as uint8 [batch, 4, 4, 3]"
    assert caught.value.got == came


@pytest.mark.parametrize("value", [-1, 10])
def test_a_value_outside_the_vocabulary_is_refused(value):
    wild = tokens()
    wild[1, 3] = value
    with pytest.raises(SpecError, match=r"'tokens' within 0 \.\. 9") as caught:
        TOKENS.check(wild)
    assert str(value) in caught.value.got


def test_nan_is_not_within_any_range():
    spec = TensorSpec(name="wave", dtype="float32", shape=("batch",), legal=(-1, 1))
    with pytest.raises(SpecError, match="nan"):
        spec.check(np.array([0, np.nan], np.float32))


@pytest.mark.parametrize("dtype", ["complex64", "str", "uint8 ", ""])
def test_a_type_that_triton_does_not_have_cannot_be_declared(dtype):
    with pytest.raises(SpecError, match="float32"):
        TensorSpec(name="x", dtype=dtype, shape=("batch",))


@pytest.mark.parametrize("dtype", sorted(set(TRITON_DTYPES) - {"object"}))
def test_every_declared_type_is_a_numpy_type_and_is_recognised(dtype):
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch",))
    spec.check(np.zeros(3, dtype))
    other = "float64" if dtype != "float64" else "int8"
    with pytest.raises(SpecError):
        spec.check(np.zeros(3, other))


@pytest.mark.parametrize(
    "inputs",
    [{"images": images()}, {"images": images(), "tokens": tokens(), "more": tokens()}, {}],
)
def test_names_are_exactly_the_declared_ones(inputs):
    with pytest.raises(SpecError, match=r"\['images', 'tokens'\]"):
        MODEL.check(inputs)


def test_inputs_agree_on_the_batch():
    with pytest.raises(SpecError, match="one batch size") as caught:
        MODEL.check({"images": images(2), "tokens": tokens(3, 5)})
    assert "2" in caught.value.got
    assert "3" in caught.value.got


def test_json_and_back_is_the_same():
    again = msgspec.json.decode(msgspec.json.encode(MODEL), type=ModelSpec)
    assert again == MODEL
    assert again.inputs[0].shape == ("batch", 4, 4, 3)


def test_rows_are_chosen_of_every_tensor():
    chosen = rows({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}, [3, 1])
    assert chosen["a"].tolist() == [3, 1]
    assert chosen["b"].tolist() == [[6, 7], [2, 3]]
