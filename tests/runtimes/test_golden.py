import numpy as np
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect


@pytest.fixture
def bundle(tmp_path):
    return Bundle(small_bundles.make(tmp_path / "b"))


@pytest.fixture
def runtime(bundle):
    return connect("golden@bundle", bundle, RuntimeOptions())


def test_rows_are_looked_up_in_any_order_and_number(bundle, runtime):
    golden = bundle.golden()
    picked = [5, 0, 5, 11]
    answer = runtime({"images": golden.inputs["images"][picked]})
    np.testing.assert_array_equal(answer["logits"], golden.outputs["logits"][picked])
    assert answer["logits"].dtype == np.float32


def test_no_rows_no_answers(bundle, runtime):
    answer = runtime({"images": bundle.golden().inputs["images"][:0]})
    assert answer["logits"].shape == (0, 4)


def test_an_unknown_row_is_named(bundle, runtime):
    images = bundle.golden().inputs["images"][:3].copy()
    images[1, 0, 0, 0] ^= 1
    with pytest.raises(BundleError, match="another input in row 1"):
        runtime({"images": images})


def test_other_inputs_are_refused(runtime):
    with pytest.raises(SpecError):
        runtime({"images": np.zeros((1, 16, 16, 3), np.float32)})


def test_other_places_are_refused(bundle):
    with pytest.raises(OptionError, match="golden@cpu"):
        connect("golden@cpu", bundle, RuntimeOptions())
    with pytest.raises(OptionError, match="without a bundle"):
        connect("golden@bundle", None, RuntimeOptions())


def test_changed_golden_samples_are_refused(bundle):
    path = bundle.root / "golden" / "outputs.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match="golden with sha256"):
        connect("golden@bundle", bundle, RuntimeOptions())


def test_it_names_its_digest(bundle, runtime):
    assert runtime.facts()["golden_sha256"] == bundle.manifest.golden_sha256
    assert runtime.counters() == {}
    runtime.close()
