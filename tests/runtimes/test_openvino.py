import sys

import numpy as np
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.errors import ExportError, MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect


@pytest.fixture
def bundle(tmp_path):
    return Bundle(small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx()))


def test_it_answers_as_onnx_runtime_does_in_float32(bundle):
    budget = RuntimeOptions(threads=1)
    ort, opened = (connect(f"{kind}@cpu", bundle, budget) for kind in ("ort", "openvino"))
    for batch in (1, 5):
        asked = {"images": small_bundles.images(batch)}
        answer = opened(asked)["logits"]
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, ort(asked)["logits"], rtol=1e-4, atol=1e-4)
    facts = opened.facts()
    assert facts["precision"] == "f32"
    assert facts["threads"] == 1
    assert facts["artifact_sha256"] == bundle.artifact("onnx-fp32").sha256
    assert opened.counters() == {}
    with pytest.raises(SpecError, match="images"):
        opened({"images": np.zeros((1, 2, 3), np.uint8)})
    opened.close()
    ort.close()
    with pytest.raises(OptionError, match="openvino@cpu, closed"):
        opened(asked)


def test_another_precision_is_asked_for_by_name_and_shown(bundle):
    opened = connect("openvino@cpu-bf16", bundle, RuntimeOptions(threads=1))
    assert opened.facts()["precision"] in ("bf16", "f32")  # f32 on processors without it
    opened.close()


def test_answers_are_the_callers_own(bundle):
    opened = connect("openvino@cpu", bundle, RuntimeOptions(threads=1))
    first = opened({"images": small_bundles.images(2)})["logits"]
    kept = first.copy()
    opened({"images": small_bundles.images(2, seed=9)})
    np.testing.assert_array_equal(first, kept)
    opened.close()


@pytest.mark.parametrize("where", ["gpu", "cpu-f64"])
def test_other_places_are_refused(bundle, where):
    with pytest.raises(OptionError, match=f"got: openvino@{where}"):
        connect(f"openvino@{where}", bundle, RuntimeOptions())


def test_without_a_bundle():
    with pytest.raises(OptionError, match="a bundle for openvino@cpu"):
        connect("openvino@cpu", None, RuntimeOptions())


def test_without_the_library_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"tlexport\[openvino\]"):
        connect("openvino@cpu", bundle, RuntimeOptions())


def test_a_file_it_cannot_load(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0a no model")
    bundle = Bundle(small_bundles.make(tmp_path / "b", broken))
    with pytest.raises(ExportError, match="a file that OpenVINO"):
        connect("openvino@cpu", bundle, RuntimeOptions())
