import numpy as np
import pytest
import small_bundles

from tlexport.errors import MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import compile as runtime
from tlexport.runtimes import connect


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    from tlexport.bundle import Bundle

    small_bundles.plug_task(monkeypatch)
    return Bundle(small_bundles.make(tmp_path / "b"))


def test_it_answers_as_eager_does_at_each_size(bundle):
    budget = RuntimeOptions(threads=1)
    eager, compiled = (connect(f"{kind}@cpu", bundle, budget) for kind in ("eager", "compile"))
    for batch in (1, 3):
        asked = {"images": small_bundles.images(batch)}
        np.testing.assert_allclose(
            compiled(asked)["logits"], eager(asked)["logits"], rtol=1e-4, atol=1e-4
        )
    facts = compiled.facts()
    assert facts["compiled"] == "inductor, a graph per batch size"
    assert facts["threads"] == 1
    assert facts["weights_sha256"] == bundle.manifest.weights_sha256
    assert compiled.counters() == {}
    with pytest.raises(SpecError, match="images"):
        compiled({"images": np.zeros((1, 2, 3), np.uint8)})
    for each in (compiled, eager):
        each.close()
    with pytest.raises(OptionError, match="compile@cpu, closed"):
        compiled(asked)


@pytest.mark.parametrize("where", ["cpu-float64", "tpu", "cuda:x"])
def test_other_places_are_refused(bundle, where):
    with pytest.raises(OptionError, match=f"got: compile@{where}"):
        connect(f"compile@{where}", bundle, RuntimeOptions())


def test_without_a_bundle(bundle):
    with pytest.raises(OptionError, match="a bundle for compile@cpu"):
        connect("compile@cpu", None, RuntimeOptions())


def test_without_a_compiler_it_says_so(bundle, monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependency, match=r"C\+\+ compiler"):
        connect("compile@cpu", bundle, RuntimeOptions())
