"""A linear head: it separates what can be separated, and says how well."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from tlexport.options import TrainOptions
from tlexport.progress import silent
from tlexport.training import head
from tlexport.training.head import Labelled

OPTIONS = TrainOptions(trials=3)


def labelled(values: np.ndarray, labels: np.ndarray) -> Labelled:
    return Labelled(values=values.astype(np.float32), labels=labels.astype(np.int64))


@pytest.fixture(scope="module")
def scans() -> tuple[Labelled, Labelled]:
    """The 64 pixels of scikit-learn's real scans as features."""
    digits = load_digits()
    a, b, x, y = train_test_split(
        digits.data, digits.target, test_size=0.3, stratify=digits.target, random_state=0
    )
    return labelled(a, x), labelled(b, y)


def blobs(seed: int, counts: tuple[int, ...], width: int = 8, apart: float = 6.0):
    """Gaussian clouds around corners that do not depend on the seed."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    corners = np.random.default_rng(99).normal(0, 1, (len(counts), width)) * apart
    return labelled(corners[labels] + rng.normal(0, 1, (len(labels), width)), labels)


def accuracy(fit: head.Fit, part: Labelled) -> float:
    with torch.inference_mode():
        answers = fit.head(torch.from_numpy(part.values)).argmax(1).numpy()
    return float((answers == part.labels).mean())


def test_what_is_linearly_separable_is_separated():
    train, val = blobs(0, (40, 40, 40)), blobs(1, (20, 20, 20))
    best, trials = head.search(train, val, 3, OPTIONS, silent)
    assert best.report.val_accuracy == 1.0
    assert accuracy(best, val) == 1.0
    assert len(trials) == 3
    assert best.report == min(trials, key=lambda trial: trial.val_loss)


def test_real_scans_are_told_apart_as_well_as_by_scikit_learn(scans):
    train, val = scans
    best, _ = head.search(train, val, 10, TrainOptions(trials=6), silent)
    scaler = StandardScaler().fit(train.values)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit(
        scaler.transform(train.values), train.labels
    )
    assert accuracy(best, val) >= theirs.score(scaler.transform(val.values), val.labels) - 0.01
    assert accuracy(best, val) > 0.95


def test_the_head_takes_plain_features_and_answers_as_the_standardised_one_reported(scans):
    train, val = scans
    shifted = [
        labelled(1000 + 50 * part.values.astype(np.float64), part.labels) for part in (train, val)
    ]
    best, _ = head.search(*shifted, 10, OPTIONS, silent)
    assert accuracy(best, shifted[1]) == pytest.approx(best.report.val_accuracy, abs=1e-6)
    logits = best.head(torch.from_numpy(shifted[1].values))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(shifted[1].labels))
    assert float(loss.detach()) == pytest.approx(best.report.val_loss, rel=1e-3)


def test_folding_is_exact():
    torch.manual_seed(0)
    plain = torch.nn.Linear(16, 4)
    rng = np.random.default_rng(0)
    values = rng.normal(3, 5, (50, 16))
    mean, std = values.mean(0), values.std(0)
    folded = head._folded(plain, mean, std)
    with torch.inference_mode():
        standard = plain(torch.from_numpy(((values - mean) / std).astype(np.float32)))
        direct = folded(torch.from_numpy(values.astype(np.float32)))
    assert (standard - direct).abs().max() < 1e-5


def test_a_feature_that_never_changes_in_training_does_no_harm(scans):
    train, val = (labelled(np.c_[p.values, np.full(len(p.labels), 7)], p.labels) for p in scans)
    wild = labelled(np.c_[val.values[:, :-1], np.full(len(val.labels), 8)], val.labels)
    best, _ = head.search(train, wild, 10, OPTIONS, silent)
    assert accuracy(best, wild) > 0.93
    assert best.head.weight.isfinite().all()


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_the_scale_of_the_features_does_not_matter(scans, scale):
    """Networks with random weights give features as small as 1e-8."""
    plain, _ = head.search(*scans, 10, TrainOptions(trials=1), silent)
    scaled = [labelled(part.values * scale, part.labels) for part in scans]
    best, _ = head.search(*scaled, 10, TrainOptions(trials=1), silent)
    assert accuracy(best, scaled[1]) == pytest.approx(accuracy(plain, scans[1]), abs=0.01)


def test_rounding_noise_is_not_taken_for_a_feature(scans):
    rng = np.random.default_rng(0)
    noisy = [
        labelled(np.c_[p.values, 1000 + rng.normal(0, 3e-5, (len(p.labels), 64))], p.labels)
        for p in scans
    ]
    mean, std = head._statistics(noisy[0].values)
    assert (((noisy[0].values - mean) / std)[:, 64:]).std() < 0.1


def test_a_seed_gives_the_same_head_to_the_bit_and_another_seed_another(scans):
    found = [
        head.search(*scans, 10, msgspec.structs.replace(OPTIONS, seed=seed), silent)
        for seed in (4, 4, 5)
    ]
    assert torch.equal(found[0][0].head.weight, found[1][0].head.weight)
    assert torch.equal(found[0][0].head.bias, found[1][0].head.bias)
    assert found[0][1] == found[1][1]
    assert found[0][1] != found[2][1]


def test_many_features_of_few_examples_are_solved_exactly():
    """24 examples, 400 features, 3 of which tell: scikit-learn finds the same optimum."""
    rng = np.random.default_rng(0)
    parts = []
    for count in (24, 30, 600):
        labels = np.arange(count) % 3
        values = rng.normal(size=(count, 400)).astype(np.float32)
        values[np.arange(count), labels] += 4
        parts.append(head.Labelled(values=values, labels=labels))
    train, val, test = parts
    best, trials = head.search(train, val, 3, TrainOptions(trials=8), silent)
    assert {trial.optimiser for trial in trials} == {"AdamW", "L-BFGS"}
    assert len(trials) == 8
    solved = min((t for t in trials if t.optimiser == "L-BFGS"), key=lambda t: t.val_loss)
    mean, std = head._statistics(train.values)
    penalty = 1 / (len(train.labels) * solved.weight_decay)
    theirs = LogisticRegression(C=penalty, tol=1e-8, max_iter=5000)
    theirs.fit((train.values - mean) / std, train.labels)
    likely = theirs.predict_proba((val.values - mean) / std)[np.arange(30), val.labels]
    assert solved.val_loss == pytest.approx(-np.log(likely).mean(), rel=1e-2)
    assert accuracy(best, test) >= theirs.score((test.values - mean) / std, test.labels) - 0.02


def test_much_data_is_left_to_adamw(monkeypatch, scans):
    monkeypatch.setattr(head, "EXACT", 1000)
    assert {t.optimiser for t in head.search(*scans, 10, OPTIONS, silent)[1]} == {"AdamW"}


def test_the_callers_random_state_and_threads_are_left_alone(scans):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    head.search(*scans, 10, TrainOptions(trials=1, epochs=1), silent)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), wanted)


def test_class_weights_are_one_where_shares_are_equal_and_lift_the_rare_class():
    weighted = msgspec.structs.replace(OPTIONS, class_weights=True)
    assert head.weights_of(np.array([0, 1, 2]), 3, weighted).tolist() == [1, 1, 1]
    rare_counts = head.weights_of(np.array([0, 0, 0, 1]), 2, weighted).tolist()
    assert rare_counts == pytest.approx([2 / 3, 2])
    assert head.weights_of(np.array([0, 0, 0, 1]), 2, OPTIONS).tolist() == [1, 1]
    train, val = blobs(0, (400, 20), apart=0.5), blobs(1, (400, 200), apart=0.5)
    recalls = []
    for weighted in (False, True):
        options = msgspec.structs.replace(OPTIONS, class_weights=weighted)
        best, _ = head.search(train, val, 2, options, silent)
        rare = labelled(val.values[val.labels == 1], val.labels[val.labels == 1])
        recalls.append(accuracy(best, rare))
    assert recalls[1] > recalls[0] + 0.1, recalls


def test_a_run_stops_when_the_validation_loss_no_longer_falls(monkeypatch):
    """Labels that are pure noise: every further epoch fits noise."""
    rng = np.random.default_rng(0)
    train = labelled(rng.normal(0, 1, (60, 40)), rng.integers(0, 2, 60))
    val = labelled(rng.normal(0, 1, (60, 40)), rng.integers(0, 2, 60))
    passes = []
    permuted = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: passes.append(1) or permuted(*a, **k))
    options = TrainOptions(trials=1, epochs=200, patience=5)
    best, _ = head.search(train, val, 2, options, silent)
    assert len(passes) == best.report.epochs + 5
    assert len(passes) < 60


def test_the_kept_head_is_that_of_the_best_epoch_and_not_of_the_last():
    rng = np.random.default_rng(0)
    train = labelled(rng.normal(0, 1, (60, 40)), rng.integers(0, 2, 60))
    val = labelled(rng.normal(0, 1, (60, 40)), rng.integers(0, 2, 60))
    best, _ = head.search(train, val, 2, TrainOptions(trials=1, patience=20), silent)
    logits = best.head(torch.from_numpy(val.values)).detach()
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
    assert float(loss) == pytest.approx(best.report.val_loss, rel=1e-3)


def test_progress_counts_the_trials(scans):
    told = []
    head.search(*scans, 10, TrainOptions(trials=3, epochs=1), lambda *args: told.append(args))
    assert told == [("head", 1, 3), ("head", 2, 3), ("head", 3, 3)]
