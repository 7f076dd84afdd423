"""Under torchrun or srun: what divides its work goes on, everything else is told once is enough."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tlexport
from tlexport.errors import OptionError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "line", [("run", "photos", "-o", "b"), ("export", "b"), ("serve", "r"), ("select", "photos")]
)
def test_what_does_not_divide_its_work_is_refused(line, second_of_two, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*line)
    assert (code, out) == (2, "")
    assert f"expected one process for `tlexport {line[0]}`" in err
    assert "got: process 2 of 2 that were launched together" in err
    assert "launch `tlexport train` alone" in err
    assert not list(tmp_path.iterdir())


def test_training_is_not_refused(second_of_two, run, tmp_path):
    code, _, err = run("train", tmp_path / "none", "-o", tmp_path / "b")
    assert code != 0
    assert "launched" not in err  # it has looked for the examples


def test_the_whole_job_as_a_function_is_refused_too(second_of_two, tmp_path):
    with pytest.raises(OptionError, match="one process for the whole job"):
        tlexport.run(tmp_path, tmp_path / "b")


def test_one_process_of_one_may_do_everything(run, monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "1" if "WORLD" in name else "0")
    code, out, _ = run("backbones", "--json")
    assert code == 0 and out


def test_the_whole_job_under_torchrun_writes_nothing(digits, tmp_path):
    """Neither once nor twice: no process of the launch begins, and each says what to do."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tlexport", "run", str(digits), "-o", "b"),
            *("--backbone", "timm/test_resnet", "--weights", "random"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert "expected one process for `tlexport run`" in ran.stderr
    assert "launch `tlexport train` alone" in ran.stderr
    assert not list(tmp_path.iterdir())
