from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from serving import bundles, small_models
from serving.processes import descendants, gone, regions, until

from tlexport.cli import main
from tlexport.stages.package import package

COMMAND = [sys.executable, "-c", "from tlexport.cli import main; main()", "serve"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    package(bundles.make(folder / "b.bundle"), folder / "models")
    return folder / "models"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(place, number):
    with subprocess.Popen(
        [*COMMAND, str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        lines = list(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
        text = "".join(lines)
        address = text.split("HTTP ")[1].split()[0]
        assert "embedded Triton server ready in" in text
        assert "insects version 1: golden sample answered" in text
        assert f"curl -i http://{address}/v2/health/ready" in text
        assert "next: tlexport predict triton@127.0.0.1:" in text
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        children = descendants(process.pid)
        assert len(children) >= 3
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == "Stopping the server ...\n"
    assert all(gone(pid) for pid in children)
    assert not regions(process.pid)


def test_json_is_printed_once_ready_and_it_goes_on_serving(place):
    with subprocess.Popen(
        [*COMMAND, str(place), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        text = "".join(iter(process.stdout.readline, "}\n")) + "}"
        report = json.loads(text)
        assert report["models"][0]["name"] == "insects"
        server = descendants(report["pid"])[0]
        os.kill(server, signal.SIGKILL)
        assert process.wait(20) == 9
        assert process.stdout.read() == ""
        told = process.stderr.read()
    assert "Error: expected the embedded server to keep running" in told
    assert "it ended with code 137" in told
    until(lambda: Path(report["log"]).is_file())


def test_refusals_have_their_exit_code(tmp_path, capsys):
    small_models.lay(
        tmp_path / "models", "stiff", small_models.double((1, 3)), small_models.plain()
    )
    for arguments, code, message in (
        ((tmp_path / "models",), 9, "first dimension must be -1"),
        ((tmp_path / "none",), 8, "no such folder"),
        ((tmp_path / "models", "--http-port", "70000"), 2, "--http-port"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, arguments)])
        told = capsys.readouterr()
        assert (ended.value.code, told.out) == (code, "")
        assert message in told.err


def test_it_serves_with_a_closed_stdout(place):
    with subprocess.Popen(
        ["bash", "-c", 'exec "$@" >&-', "-", *COMMAND, str(place)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: len(descendants(process.pid)) >= 3, 30)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == "Stopping the server ...\n"
