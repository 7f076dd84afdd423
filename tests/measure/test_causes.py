import numpy as np
import pytest

from tlexport.measure.causes import explanations, other_inputs

LABELS = ("cat", "dog", "eel", "fox")


@pytest.fixture
def want():
    return np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("shuffled-batch", lambda x: np.roll(x, 2, axis=0), "row 0 as 5"),
        ("first-row", lambda x: np.repeat(x[:1], len(x), axis=0), "first row"),
        ("swapped-labels", lambda x: x[:, [0, 3, 2, 1]], "dog, fox"),
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), "softmax"),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), "sigmoid"),
        ("tanh", np.tanh, "tanh"),
        ("negated", np.negative, "other sign"),
        ("relu", lambda x: np.maximum(x, 0), "cut off"),
        ("factor", lambda x: x * np.float32(1.25), "1.25 times"),
        ("offset", lambda x: x + np.array([0, 0, 0.5, 0], dtype=np.float32), "0.5 to eel"),
        ("zeros", np.zeros_like, "0"),
    ],
)
def test_a_change_is_recognised(want, name, change, told):
    found = explanations(want, change(want), LABELS)
    assert found
    assert found[0].name == name
    assert told in found[0].told


def test_nothing_is_said_of_equal_unknown_or_broken_answers(want):
    noise = np.random.default_rng(1).standard_normal(want.shape).astype(np.float32)
    assert explanations(want, want, LABELS) == []
    assert explanations(want, want + noise, LABELS) == []
    assert explanations(want, want[:, :2], LABELS) == []
    assert explanations(want, np.full_like(want, np.nan), LABELS) == []


def test_inputs_as_a_wrong_preprocessing_makes_them():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    found = {name: changed["images"] for name, _, changed in other_inputs({"images": images})}
    assert set(found) == {"channel-order", "mirrored", "transposed"}
    assert np.array_equal(found["channel-order"], images[..., ::-1])
    assert np.array_equal(found["transposed"], images.transpose(0, 2, 1, 3))
    mask = np.array([[1, 1, 0]])
    changed = {name: inputs for name, _, inputs in other_inputs({"ids": mask * 7, "mask": mask})}
    assert np.array_equal(changed["mask"]["mask"], [[1, 1, 1]])
    assert np.array_equal(changed["mask"]["ids"], mask * 7)
