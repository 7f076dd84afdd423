"""bfloat16 features are taken where their head is as good, and are never mixed with others."""

from __future__ import annotations

import numpy as np
import pytest

from tlexport.options import TrainOptions
from tlexport.progress import silent
from tlexport.tasks import image_classification
from tlexport.training import halves
from tlexport.training.features import Extraction, compute
from tlexport.training.halves import Verdict, judge, sample


@pytest.fixture(scope="module")
def learner():
    """The smallest there is: a CPU without bf16 takes a second for an image of Lite0."""
    options = TrainOptions(backbone="timm/lcnet_035", weights="random")
    return image_classification.learner(options, None)


@pytest.fixture
def few(photos):
    """12 real photos, 6 of each of two classes."""
    examples = image_classification.read(photos).train
    return [e for label in (0, 1) for e in [e for e in examples if e.label == label][:6]]


def extraction(learner, cache, precision) -> Extraction:
    return Extraction(
        task=image_classification, learner=learner, cache=cache, batch=8, precision=precision
    )


def test_bf16_features_are_near_and_kept_apart(learner, few, tmp_path):
    exact = compute(few, extraction(learner, tmp_path, "fp32"), silent)
    half = compute(few, extraction(learner, tmp_path, "bf16"), silent)
    gap = np.abs(half.values - exact.values).max() / np.abs(exact.values).max()
    assert 1e-4 < gap < 0.1, "computed in bf16, which has 8 bits"
    assert (half.reused, half.runtime, half.notes) == (0, "PyTorch in bf16", ())
    again = compute(few, extraction(learner, tmp_path, "bf16"), silent)
    assert again.reused == 12
    assert np.array_equal(again.values, half.values)
    assert np.array_equal(
        compute(few, extraction(learner, tmp_path, "fp32"), silent).values, exact.values
    )


def test_a_worse_head_refuses_bf16_and_the_verdict_is_kept(learner, few, tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "DROP", -2.0)
    exact = compute(few, extraction(learner, tmp_path / "exact", "fp32"), silent)
    refused = compute(few, extraction(learner, tmp_path, "bf16"), silent)
    assert np.array_equal(refused.values, exact.values)
    assert "computed in fp32" in refused.notes[0]
    monkeypatch.setattr(halves, "judge", lambda *a: pytest.fail("asked again"))
    assert compute(few, extraction(learner, tmp_path, "bf16"), silent).reused == 12


def test_auto_asks_nothing_of_few_examples(learner, few, tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "available", lambda: True)
    monkeypatch.setattr(halves, "judge", lambda *a: pytest.fail("asked"))
    assert compute(few, extraction(learner, tmp_path, "auto"), silent).runtime == "PyTorch"


@pytest.mark.parametrize("first", ["auto", "fp32"])
def test_auto_goes_on_in_the_precision_that_was_begun(learner, few, tmp_path, monkeypatch, first):
    monkeypatch.setattr(halves, "available", lambda: True)
    monkeypatch.setattr(halves, "LEAST", 1)
    begun = compute(few, extraction(learner, tmp_path, first), silent)
    assert begun.runtime == ("PyTorch in bf16" if first == "auto" else "PyTorch")
    again = compute(few, extraction(learner, tmp_path, "auto"), silent)
    assert again.reused == 12
    assert np.array_equal(again.values, begun.values)


def test_a_sample_has_all_classes():
    labels = [0] * 500 + [1] * 20 + [2] * 480
    rows = sample(labels, 100)
    assert len(set(rows)) == 100
    assert {labels[row] for row in rows} == {0, 1, 2}
    assert sample([1, 0, 1], 256) == [1, 0, 2]


def test_the_head_tells_features_that_were_lost():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 64)
    exact = rng.normal(size=(128, 16)).astype(np.float32)
    exact[:, 0] += 8 * labels
    near = exact * (1 + rng.normal(size=exact.shape) * 2**-8).astype(np.float32)
    lost = rng.permutation(exact)
    assert judge(exact, near, labels).holds
    verdict = judge(exact, lost, labels)
    assert verdict.exact > 0.95
    assert not verdict.holds


def test_a_point_may_be_lost_and_no_more():
    assert Verdict(exact=0.9, half=0.895).holds
    assert not Verdict(exact=0.9, half=0.88).holds
