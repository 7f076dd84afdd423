"""Processes of one launch divide the features and meet in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from counted_network import asked, extraction

from tlexport.progress import silent
from tlexport.tasks import image_classification
from tlexport.training import features, meeting
from tlexport.training.features import compute

ONE = """
    import pathlib, sys
    sys.path[:0] = sys.argv[1:2]
    import counted_network, numpy
    from tlexport.progress import silent
    from tlexport.tasks import image_classification
    from tlexport.training import features
    features.SHARD = 40
    scans = image_classification.read(pathlib.Path(sys.argv[2])).train
    of = counted_network.extraction(pathlib.Path(sys.argv[3]))
    found = features.compute(scans, of, silent)
    numpy.save(sys.argv[4], found.values)
    print(counted_network.asked(of), found.reused)
"""


@pytest.fixture
def scans(digits):
    return image_classification.read(digits).train


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD", 40)


def test_two_processes_compute_each_its_part_and_have_the_whole(digits, scans, tmp_path):
    processes = []
    for rank in range(2):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", textwrap.dedent(ONE), str(Path(__file__).parents[1])]
        command += [str(digits), str(tmp_path / "cache"), str(tmp_path / f"{rank}.npy")]
        processes.append(
            subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
            )
        )
    told = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [int(rows) for rows, _ in told] == [160, 140], "shards 0 2 4 6 and 1 3 5 7, once each"
    alone = compute(scans, extraction(tmp_path / "alone"), silent).values
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), alone)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE_S", 0.3)
    monkeypatch.setattr(meeting, "PATIENCE_SHARDS", 0)


def test_what_a_dead_process_left_undone_is_done_by_the_others(
    scans, tmp_path, monkeypatch, impatient
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    told = []
    survivor = extraction(tmp_path)
    found = compute(scans, survivor, lambda *args: told.append(args))
    assert asked(survivor) == 300
    assert told[-1] == ("features", 300, 300)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    again = compute(scans, extraction(tmp_path), silent)
    assert again.reused == 300, "and kept"
    assert np.array_equal(again.values, found.values)
    alone = compute(scans, extraction(tmp_path / "alone"), silent)
    assert np.array_equal(alone.values, found.values)


def test_what_another_left_damaged_is_not_taken(scans, tmp_path, monkeypatch, impatient):
    before = compute(scans, extraction(tmp_path), silent)
    (first, *_) = sorted(tmp_path.rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-9])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    after = compute(scans, extraction(tmp_path), silent)
    assert after.reused == 260
    assert np.array_equal(after.values, before.values)
