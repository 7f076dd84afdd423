"""Cores that may be used, and versions that decide what a model answers."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from tlexport import environment
from tlexport.environment import _cgroup_quota, cores, versions
from tlexport.errors import OptionError


@pytest.fixture
def affinity(monkeypatch):
    """Set how many cores the scheduler would give, and the cgroup's quota."""

    def set_to(count: int, quota: float | None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
        monkeypatch.setattr(environment, "_cgroup_quota", lambda root: quota)

    return set_to


def test_the_affinity_of_this_process_is_held():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= cores() <= len(allowed)


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 1), (8, 0.25, 1), (2, 64.0, 2), (1, None, 1)],
)
def test_the_smaller_of_affinity_and_quota_counts_and_never_less_than_one(
    affinity, allowed, quota, expected
):
    affinity(allowed, quota)
    assert cores() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "\n"}, None),
        ({}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, None),
    ],
)
def test_quotas_of_both_versions_are_read(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert _cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(("outer", "inner", "expected"), [(4, 2, 2.0), (1, 2, 1.0)])
def test_the_tightest_quota_between_the_process_and_the_root_counts(
    tmp_path, monkeypatch, outer, inner, expected
):
    read_text = Path.read_text

    def read(self: Path, *args, **kwargs) -> str:
        if self == Path("/proc/self/cgroup"):
            return "0::/kubepods/pod1\n"
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    place = tmp_path / "kubepods" / "pod1"
    place.mkdir(parents=True)
    (tmp_path / "kubepods" / "cpu.max").write_text(f"{outer}00000 100000")
    (place / "cpu.max").write_text(f"{inner}00000 100000")
    assert _cgroup_quota(tmp_path) == expected


def test_version_1_names_the_controller_before_the_path(tmp_path, monkeypatch):
    read_text = Path.read_text
    lines = "11:memory:/elsewhere\n4:cpu,cpuacct:/docker/abc\n"

    def read(self: Path, *args, **kwargs) -> str:
        return lines if self == Path("/proc/self/cgroup") else read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    for folder, quota in (("docker/abc", 200_000), ("elsewhere", 100_000)):
        place = tmp_path / "cpu" / folder
        place.mkdir(parents=True)
        (place / "cpu.cfs_quota_us").write_text(str(quota))
        (place / "cpu.cfs_period_us").write_text("100000")
    assert _cgroup_quota(tmp_path) == 2.0


def test_the_versions_are_those_installed():
    found = versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert "numpy" in found
    assert "nothing-of-this-name" not in found


def test_the_environment_names_the_machine():
    here = environment.environment()
    assert here.cores == cores()
    assert here.cpu
    assert here.python.startswith("3.")
    assert here.versions == versions()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse4_2 avx2 avx512f avx512_vnni", False),
        ("fpu sse4_2 avx2 avx_vnni", False),
        ("fpu sse4_2 avx2 avx512f", True),
        ("fpu sse4_2 avx2", True),
        ("fpu sse4_2", False),
    ],
)
def test_int8_sums_overflow_on_x86_before_vnni(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert environment.saturates(tmp_path / "cpuinfo") is expected


def test_an_unknown_cpu_overflows_nothing(tmp_path):
    assert not environment.saturates(tmp_path / "none")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: asimd asimddp\n")
    assert not environment.saturates(tmp_path / "arm")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            (5, 8, 1, 4),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0, 1)),
        ({"RANK": "3"}, (0, 1, 0, 1)),
        (
            {
                "SLURM_PROCID": "9",
                "SLURM_STEP_NUM_TASKS": "11",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
            },
            (9, 11, 1, 4),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0, 1)),  # the script of sbatch itself
    ],
)
def test_a_launcher_tells_who_one_is(variables, expected):
    found = environment.launch(variables)
    assert (found.rank, found.count, found.local_rank, found.local_count) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_a_launcher_that_contradicts_itself_is_refused(variables):
    with pytest.raises(OptionError, match=r"rank|number"):
        environment.launch(variables)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 2),
        ({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "16"}, 1),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_CPUS_PER_TASK": "32"}, 8),
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_CPUS_ON_NODE": "12",
            },
            6,
        ),
    ],
)
def test_processes_of_one_launch_share_the_cores(affinity, monkeypatch, variables, expected):
    affinity(8, None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cores() == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512_bf16", True), ("amx_bf16 avx2", True), ("avx2 avx512f", False)],
)
def test_a_cpu_that_multiplies_bf16_says_so(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert environment.multiplies_bf16(tmp_path / "cpuinfo") is expected
    assert not environment.multiplies_bf16(tmp_path / "none")
