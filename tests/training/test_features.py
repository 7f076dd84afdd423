"""Features are computed once, kept, and never taken for those of something else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from counted_network import NUMBERS, asked, extraction

from tlexport.options import TrainOptions
from tlexport.progress import silent
from tlexport.tasks import Example, image_classification
from tlexport.training import features
from tlexport.training.features import Extraction, compute


@pytest.fixture
def scans(digits) -> tuple[Example, ...]:
    """300 real scans."""
    return image_classification.read(digits).train


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD", 40)


def test_row_i_is_of_example_i(scans, tmp_path):
    shuffled = [scans[n] for n in np.random.default_rng(0).permutation(len(scans))]
    found = compute(shuffled, extraction(tmp_path), silent)
    assert found.values.shape == (300, 3)
    assert found.values.dtype == np.float32
    assert found.broken == {}
    for row in (0, 17, 299):
        pixels = image_classification.load([shuffled[row].source], NUMBERS).inputs["images"][0]
        assert np.allclose(found.values[row], pixels.mean((0, 1)), atol=1e-3)


def test_a_second_run_reuses_all_and_asks_the_network_nothing(scans, tmp_path, small_shards):
    first, again = extraction(tmp_path), extraction(tmp_path)
    before = compute(scans, first, silent)
    after = compute(scans, again, silent)
    assert (before.reused, asked(first)) == (0, 300)
    assert (after.reused, asked(again)) == (300, 0)
    assert np.array_equal(before.values, after.values)


def test_another_split_of_the_same_files_reuses_all(scans, tmp_path, small_shards):
    before = compute(scans, extraction(tmp_path), silent)
    order = np.random.default_rng(1).permutation(len(scans))
    again = extraction(tmp_path)
    after = compute([scans[n] for n in order], again, silent)
    assert after.reused == 300
    assert asked(again) == 0
    assert np.array_equal(after.values, before.values[order])


@pytest.mark.parametrize(
    "other",
    [
        {"weight": 2.0},
        {"resize": [20, 20]},
        {"interpolation": "nearest"},
        {"background": [0, 0, 0]},
    ],
)
def test_other_weights_or_preprocessing_are_computed_anew(scans, tmp_path, other):
    few = scans[:16]
    compute(few, extraction(tmp_path), silent)
    changed = extraction(tmp_path, **other)
    assert compute(few, changed, silent).reused == 0
    assert asked(changed) == 16


def test_a_changed_file_is_noticed(scans, tmp_path):
    few = scans[:16]
    compute(few, extraction(tmp_path), silent)
    same = [*few[:3], Example(source=few[3].source, label=7, digest=few[3].digest), *few[4:]]
    assert compute(same, extraction(tmp_path), silent).reused == 16
    other = [*few[:3], Example(source=few[3].source, label=0, digest="another"), *few[4:]]
    assert compute(other, extraction(tmp_path), silent).reused == 0


def test_the_batch_is_not_part_of_what_features_are(scans, tmp_path):
    few = scans[:20]
    compute(few, extraction(tmp_path, batch=8), silent)
    assert compute(few, extraction(tmp_path, batch=3), silent).reused == 20


def test_broken_files_are_remembered_with_their_reasons(scans, tmp_path, small_shards):
    paths = []
    for number, text in enumerate(("no image\0at all", "")):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_text(text)
    broken = [Example(source=path, label=0, digest=path.name) for path in paths]
    mixed = [scans[0], broken[0], *scans[1:50], broken[1], *scans[50:60]]
    first = compute(mixed, extraction(tmp_path / "c"), silent)
    again = compute(mixed, extraction(tmp_path / "c"), silent)
    assert list(first.broken) == [1, 51]
    assert "no image" in first.broken[1]
    assert again.broken == first.broken
    assert again.reused == 62
    assert np.array_equal(again.values, first.values)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_of_the_cache_is_computed_again(scans, tmp_path, small_shards, damage):
    before = compute(scans, extraction(tmp_path), silent)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 8
    data = bytearray(files[2].read_bytes())
    if damage == "flip":
        data[-7] ^= 4
    files[2].write_bytes({"cut": data[:-9], "flip": data, "empty": b"", "text": b"hello"}[damage])
    again = extraction(tmp_path)
    after = compute(scans, again, silent)
    assert after.reused == 260
    assert asked(again) == 40
    assert np.array_equal(after.values, before.values)
    assert compute(scans, extraction(tmp_path), silent).reused == 300, "and kept again"


def test_progress_starts_at_what_is_there_and_ends_at_all(scans, tmp_path, small_shards):
    compute(scans, extraction(tmp_path), silent)
    sorted(tmp_path.rglob("*.safetensors"))[0].unlink()
    told = []
    compute(scans, extraction(tmp_path), lambda *args: told.append(args))
    assert told[0] == ("features", 260, 300)
    assert told[-1] == ("features", 300, 300)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_run_killed_in_the_middle_resumes_where_it_stopped(scans, tmp_path, small_shards):
    """kill -9 after the third of eight shards; what was whole is reused, the rest computed."""
    code = """
        import os, pathlib, signal, sys
        sys.path[:0] = sys.argv[1:2]
        import counted_network
        from tlexport.tasks import image_classification
        from tlexport.training import features
        features.SHARD = 40
        scans = image_classification.read(pathlib.Path(sys.argv[2])).train
        def tell(what, done, total=None):
            if done >= 140:
                os.kill(os.getpid(), signal.SIGKILL)
        features.compute(scans, counted_network.extraction(pathlib.Path(sys.argv[3])), tell)
    """
    root = str(scans[0].source.parents[1])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ran = subprocess.run(
        [*command, str(Path(__file__).parents[1]), root, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    again = extraction(tmp_path)
    after = compute(scans, again, silent)
    assert after.reused == 120
    assert asked(again) == 180
    assert np.array_equal(after.values, compute(scans, extraction(tmp_path / "x"), silent).values)


def test_the_digest_of_a_state_holds_names_types_shapes_and_values():
    def digest(**changes: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in ({"a": torch.zeros(4), "b": torch.ones(2, 2)} | changes).items():
            module.register_buffer(name, tensor)
        return features.digest_of_state(module)

    plain = digest()
    assert plain == digest()
    assert plain != digest(a=torch.zeros(4, dtype=torch.int32))
    assert plain != digest(a=torch.zeros(2, 2))
    assert plain != digest(a=torch.tensor([0, 0, 0, 1e-30]))
    assert plain != digest(c=torch.zeros(0))
    assert plain == digest(b=torch.ones(2, 2).t().contiguous(memory_format=torch.contiguous_format))
    assert digest(b=torch.arange(4.0).reshape(2, 2).t()) == digest(
        b=torch.arange(4.0).reshape(2, 2).t().contiguous()
    ), "the memory layout is not part of it"


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_real_features_do_not_depend_on_the_batch_they_were_computed_in(scans, tmp_path, memory):
    learner = image_classification.learner(
        TrainOptions(backbone="timm/lcnet_035", weights="random"), None
    )
    learner.extractor.to(memory_format=memory)
    whole = Extraction(task=image_classification, learner=learner, cache=tmp_path / "a", batch=8)
    single = dataclasses.replace(whole, cache=tmp_path / "b", batch=1)
    few = scans[:12]
    first, second = compute(few, whole, silent).values, compute(few, single, silent).values
    assert np.abs(first - second).max() <= 1e-4 * np.abs(first).max()


def test_the_users_threads_are_within_what_this_process_may_use(scans, tmp_path):
    compute(scans[:8], extraction(tmp_path), silent)
    assert torch.get_num_threads() <= len(os.sched_getaffinity(0))
