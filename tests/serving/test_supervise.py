"""The supervisor, with a plain program in the server's place."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving.processes import gone, until

from tlexport.serving import supervise

STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def start(command, *, stop_s=5.0, prefix="", afterwards=(), parent=None):
    told = {
        "command": command,
        "parent": parent or os.getpid(),
        "stop_s": stop_s,
        "shm_prefix": prefix,
        "afterwards": list(afterwards),
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, json.dumps(told)], stdin=subprocess.PIPE
    )


def child_of(pid: int) -> int:
    return int(until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())[0])


def ignores(pid: int, number: int) -> bool:
    mask = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(mask, 16) & (1 << (number - 1)))


def test_its_code_is_the_servers():
    with start([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        assert process.wait(10) == 7
    with start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) as process:
        assert process.wait(10) == 137


@pytest.mark.parametrize("way", ["closed", "sigterm"])
def test_it_stops_the_server_and_cleans_up(way, tmp_path):
    prefix = f"tlexport_test_{os.getpid()}_"
    region, after = Path("/dev/shm") / f"{prefix}region", tmp_path / "after"
    with start(["sleep", "60"], prefix=prefix, afterwards=["touch", str(after)]) as process:
        server = child_of(process.pid)
        region.write_bytes(b"x")
        if way == "closed":
            process.stdin.close()
        else:
            process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    assert gone(server)
    assert not region.exists()
    assert after.exists()


def test_a_server_that_does_not_stop_is_killed():
    with start([sys.executable, "-c", STUBBORN], stop_s=0.5) as process:
        server = child_of(process.pid)
        until(lambda: ignores(server, signal.SIGTERM))
        process.stdin.close()
        assert process.wait(10) == 128 + signal.SIGKILL
    assert gone(server)


LINGERING = """
import pathlib, signal, subprocess, sys, time
model = subprocess.Popen(["sleep", "60"])
def stop(number, frame):
    time.sleep(0.5)  # answers what is in flight
    pathlib.Path(sys.argv[1]).write_text("answered")
    model.kill()
    model.wait()
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[2]).touch()
while True:
    time.sleep(60)
"""


def test_a_server_whose_models_have_ended_is_not_waited_for(tmp_path):
    answered, ready = tmp_path / "answered", tmp_path / "ready"
    command = [sys.executable, "-c", LINGERING, str(answered), str(ready)]
    with start(command, stop_s=30.0) as process:
        server = child_of(process.pid)
        until(ready.exists)
        process.stdin.close()
        assert process.wait(10) == 0
    assert answered.read_text() == "answered"
    assert gone(server)


def test_an_interrupt_is_not_for_it():
    with start(["sleep", "60"]) as process:
        child_of(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.stdin.close()
        process.wait(10)


def test_the_server_dies_with_a_killed_supervisor():
    with start(["sleep", "60"]) as process:
        server = child_of(process.pid)
        process.kill()
        until(lambda: gone(server))


def test_it_stops_when_its_parent_is_another():
    with start(["sleep", "60"], parent=1 if os.getpid() != 1 else 2) as process:
        assert process.wait(10) == 128 + signal.SIGTERM


def test_what_the_server_leaves_running_is_killed(tmp_path):
    told = tmp_path / "pid"
    leaves = "sleep 60 & echo $! > " + str(told) + "; exit 3"
    with start(["bash", "-c", leaves]) as process:
        assert process.wait(10) == 3
    assert gone(int(told.read_text()))
