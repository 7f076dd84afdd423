from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import bundles

from tlexport.errors import OptionError, RepositoryError
from tlexport.serving import config
from tlexport.spec import ModelSpec, TensorSpec

GOLDEN = Path(__file__).with_name("insects.pbtxt")


def settings(**changes):
    fields = {
        "name": "insects",
        "backend": "onnxruntime",
        "max_batch": 8,
        "queue_delay_us": 500,
        "instances": 2,
        "threads": 1,
        "keep_versions": 1,
    }
    return config.Settings(**(fields | changes))


def spec_of(*shapes, dtype="float32"):
    tensors = [TensorSpec(name=f"t{i}", dtype=dtype, shape=shape) for i, shape in enumerate(shapes)]
    return ModelSpec(name="m", task="t", inputs=tuple(tensors[:1]), outputs=tuple(tensors[1:]))


def test_the_text_is_the_golden_one():
    built = config.build(
        bundles.spec(), settings(), {"images": bundles.images(1)}, {"1": "a" * 64, "2": "b" * 64}
    )
    assert config.text(built) == GOLDEN.read_text()
    assert config.parse(GOLDEN) == built
    assert config.digests_of(built) == {"1": "a" * 64, "2": "b" * 64}


def test_without_batching_dims_hold_every_axis():
    spec = spec_of(("batch", 3), ("batch", "width"))
    sample = {"t0": np.zeros((1, 3), np.float32)}
    built = config.build(spec, settings(max_batch=0), sample, {})
    assert list(built.input[0].dims) == [-1, 3]
    assert list(built.output[0].dims) == [-1, -1]
    assert not built.HasField("dynamic_batching")
    assert config.text(built).startswith("max_batch_size: 0\n")
    assert [w.batch_size for w in built.model_warmup] == [1]
    assert list(built.model_warmup[0].inputs["t0"].dims) == [1, 3]


def test_with_batching_a_column_is_reshaped_and_free_axes_are_free():
    spec = spec_of(("batch", "length"), ("batch",))
    sample = {"t0": np.zeros((1, 5), np.float32)}
    built = config.build(spec, settings(), sample, {})
    assert list(built.input[0].dims) == [-1]
    assert list(built.output[0].dims) == [1]
    assert built.output[0].HasField("reshape")
    assert list(built.model_warmup[1].inputs["t0"].dims) == [5]
    assert [w.batch_size for w in built.model_warmup] == [1, 8]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(RepositoryError, match=r"--max-batch 0"):
        config.build(
            spec_of((3,), ("batch", 3)), settings(), {"t0": np.zeros((1, 3), np.float32)}, {}
        )


def test_texts_lie_in_a_warmup_file_with_their_length():
    array = np.array([["ab", "é"]], dtype=object)
    assert config.raw_bytes(array) == b"\x02\0\0\0ab\x02\0\0\0\xc3\xa9"
    built = config.build(
        spec_of(("batch", 2), ("batch", 2), dtype="object"), settings(), {"t0": array}, {}
    )
    assert config.pb.DataType.Name(built.input[0].data_type) == "TYPE_STRING"


@pytest.mark.parametrize(
    ("asked", "cores", "found"),
    [((0, 0), 4, (1, 4)), ((2, 0), 4, (2, 2)), ((2, 1), 4, (2, 1)), ((0, 3), 4, (1, 3))],
)
def test_thread_budget(asked, cores, found):
    assert config.thread_budget(*asked, cores) == found


@pytest.mark.parametrize("asked", [(2, 3), (5, 0), (1, 5)])
def test_more_threads_than_cores_are_refused_with_the_numbers(asked):
    with pytest.raises(OptionError, match=r"within the 4 cores") as caught:
        config.thread_budget(*asked, 4)
    assert f"{asked[0]} x {asked[1] or 1} = " in str(caught.value)


def test_a_file_that_is_no_configuration(tmp_path):
    (tmp_path / "config.pbtxt").write_text('name: "x"\ncolour: red\n')
    with pytest.raises(RepositoryError, match="colour"):
        config.parse(tmp_path / "config.pbtxt")
