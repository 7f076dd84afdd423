"""Heads are asked about what they did not see, and only about that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlexport.training import head
from tlexport.training.crossing import crossed, untrained
from tlexport.training.folds import dealt


def blobs(signal: float, count: int = 200, width: int = 60, seed: int = 0) -> head.Labelled:
    """Four classes around centres `signal` deviations apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    values = rng.normal(size=(count, width)) + signal * rng.normal(size=(4, width))[labels]
    return head.Labelled(values=values.astype(np.float32), labels=labels)


def test_noise_is_right_by_chance_though_heads_could_learn_it_by_heart():
    whole = blobs(0, width=400)
    found = crossed(whole, dealt(whole.labels, 5, 0), 4)
    assert found.correct.shape == (200,)
    assert found.correct.mean() < 0.4
    learnt = head.answers(whole, whole.values, 4, min(head.PENALTIES))
    assert (learnt.argmax(1) == whole.labels).all()


def test_signal_is_found_in_the_order_of_the_examples():
    whole = blobs(1.0)
    found = crossed(whole, dealt(whole.labels, 5, 0), 4)
    assert found.correct.mean() > 0.95
    wrong = whole.labels.copy()
    wrong[7] = (wrong[7] + 1) % 4
    spoilt = crossed(head.Labelled(values=whole.values, labels=wrong), dealt(wrong, 5, 0), 4)
    assert not spoilt.correct[7]
    assert spoilt.correct.sum() >= 190


def test_who_is_never_held_out_is_learnt_from_alone():
    whole = blobs(1.0)
    folds = np.where(np.arange(200) < 150, -1, 0)
    found = crossed(whole, folds, 4)
    assert found.correct.shape == (50,)
    known = head.Labelled(values=whole.values[:150], labels=whole.labels[:150])
    logits = [head.answers(known, whole.values[150:], 4, each) for each in head.PENALTIES]
    best = head.PENALTIES.index(found.penalty)
    assert ((logits[best].argmax(1) == whole.labels[150:]) == found.correct).all()
    losses = [
        float(
            torch.nn.functional.cross_entropy(torch.tensor(each), torch.tensor(whole.labels[150:]))
        )
        for each in logits
    ]
    assert found.loss == pytest.approx(min(losses), rel=1e-5)


def test_the_callers_threads_and_random_state_are_left_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    crossed(blobs(1.0, count=40), np.arange(40) // 4 % 2, 4)
    first, again = untrained(8, 3, 5), untrained(8, 3, 5)
    assert torch.equal(first.weight, again.weight)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
