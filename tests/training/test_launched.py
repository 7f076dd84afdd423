"""Two processes of torchrun: stopped, gone on, and the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import digits as digit_scans
import pytest

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.reports import TrainReport
from tlexport.training.features import digest_of_state

START = """
import sys
from tlexport.training import engine
engine.SEGMENT = 2
from tlexport.cli import main
main(sys.argv[1:])
"""
KEPT = "What is done so far is kept: the same command goes on from there."


@pytest.mark.timeout(400)
def test_a_launch_that_is_stopped_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    scans = digit_scans.write(tmp_path / "digits", per_class=6)
    (tmp_path / "start.py").write_text(START)

    def begun(bundle: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", "start.py", "train", str(scans), "-o", bundle),
                *("--backbone", "timm/test_efficientnet", "--weights", "random"),
                *("--golden", "4", "--unfreeze", "all", "--adapt-epochs", "6"),
                *("--adapt-batch", "12"),
            ],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TLEXPORT_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = begun("whole.bundle")
    _, told = whole.communicate()
    assert whole.returncode == 0, told

    stopped = begun("stopped.bundle")
    while stopped.poll() is None and not list(tmp_path.glob("cache/runs/*/*/last.ckpt")):
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)  # as a cluster's scheduler does; torchrun passes it on
    _, told = stopped.communicate()
    assert stopped.returncode != 0
    assert told.count(KEPT) == 1, told
    assert told.count("Stopped.") == 2, told
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(("stopped", "."))}
    assert left <= {"stopped.bundle.epochs.csv"}
    assert list(tmp_path.glob("cache/runs/*/*/last.ckpt"))

    again = begun("stopped.bundle")
    _, told = again.communicate()
    assert again.returncode == 0, told
    ends = [Bundle(tmp_path / f"{name}.bundle") for name in ("whole", "stopped")]
    reports = [end.report("train", TrainReport) for end in ends]
    assert [report.adapted.resumed for report in reports] == [False, True]
    assert [report.adapted.processes for report in reports] == [2, 2]
    digests = {digest_of_state(networks.network(end)) for end in ends}
    assert len(digests) == 1
    assert not list(tmp_path.glob("cache/runs/*/*"))
