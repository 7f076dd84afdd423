"""Arrays in, arrays out: reading rows, sizes of free axes, labels where there are some."""

from __future__ import annotations

import numpy as np
import pytest

from tlexport.errors import OptionError
from tlexport.options import TrainOptions
from tlexport.spec import ModelSpec, TensorSpec
from tlexport.stages.train import train
from tlexport.tasks import tensors

INPUTS = (
    TensorSpec(name="ids", dtype="int64", shape=("batch", "n"), legal=(0, 9)),
    TensorSpec(name="mask", dtype="int64", shape=("batch", "n"), legal=(0, 1)),
    TensorSpec(name="age", dtype="float32", shape=("batch", 2)),
)
PREPROCESS = {"inputs": {t.name: [t.dtype, list(t.shape)] for t in INPUTS}, "sizes": {"n": [2, 7]}}


def spec(outputs, labels=()) -> ModelSpec:
    return ModelSpec(
        name="m",
        task="tensors",
        inputs=INPUTS,
        outputs=tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in outputs.items()),
        labels=labels,
        preprocess=PREPROCESS,
    )


def test_probes_ask_the_sizes_that_are_known_to_be_answered():
    inputs = {
        "ids": np.arange(20).reshape(4, 5) % 10,
        "mask": np.tile([1, 1, 1, 0, 0], (4, 1)),
        "age": np.zeros((4, 2), "f4"),
    }
    probes = tensors.probes(spec({"y": ("batch", 3)}), inputs, 8)
    assert [probe.name for probe in probes] == ["n 2", "n 7"]
    short, long = (probe.inputs for probe in probes)
    assert short["ids"].tolist() == [[0, 1], [5, 6]]
    assert long["ids"].shape == long["mask"].shape == (2, 7)
    assert long["age"].shape == (2, 2)
    for probe in probes:
        spec({"y": ("batch", 3)}).check(probe.inputs)


def test_the_labels_are_those_of_the_output_that_is_as_wide():
    outputs = {"value": np.zeros((2, 1), "f4"), "logits": np.array([[0, 5], [9, 1]], "f4")}
    decided = tensors.decide(spec({"value": ("batch", 1), "logits": ("batch", 2)}, "ab"), outputs)
    assert decided.order[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("outputs", "labels"), [({"y": ("batch", 2)}, ()), ({"y": ("batch", "n", 2)}, ("a", "b"))]
)
def test_without_them_nothing_is_decided(outputs, labels):
    with pytest.raises(OptionError, match="a model that tells labels"):
        tensors.decide(spec(outputs, labels), {})


def test_rows_may_have_a_batch_axis_or_none(tmp_path):
    row = {"ids": np.arange(5), "mask": np.ones(5, "i8"), "age": np.ones(2, "f4")}
    np.savez(tmp_path / "a.npz", **row, other=1)
    np.savez(tmp_path / "b.npz", **{name: array[None] for name, array in row.items()})
    loaded = tensors.load([tmp_path / "a.npz", tmp_path / "b.npz"], PREPROCESS)
    assert not loaded.broken
    assert loaded.inputs["ids"].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_broken_rows_keep_their_place(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    np.savez(tmp_path / "b.npz", ids=np.arange(5), mask=np.ones(5, "i8"), age=np.ones(2, "f4"))
    np.savez(tmp_path / "c.npz", ids=np.arange(4), mask=np.ones(4, "i8"), age=np.ones(2, "f4"))
    np.save(tmp_path / "d.npy", np.arange(5))
    files = sorted(tmp_path.iterdir())
    loaded = tensors.load(files, PREPROCESS)
    assert sorted(loaded.broken) == [0, 2, 3]
    assert "[4], [5] in the file before it" in loaded.broken[2]
    assert "one array without a name" in loaded.broken[3]
    assert loaded.inputs["ids"].tolist() == [[0] * 5, [0, 1, 2, 3, 4], [0] * 5, [0] * 5]
    assert tensors.load(files[:1], PREPROCESS).inputs["ids"].shape == (1, 1)


def test_it_cannot_be_trained(tmp_path):
    for start, name in enumerate(("a", "b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            np.save(tmp_path / "data" / name / f"{number}.npy", np.full(3, 10 * start + number))
    with pytest.raises(OptionError, match="tlexport import"):
        train(tmp_path / "data", tmp_path / "b", TrainOptions(task="tensors"))
