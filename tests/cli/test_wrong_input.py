"""Wrong input is answered with what was expected, what came and what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import digits as digit_scans
import msgspec
import pytest

from tlexport.cli import main
from tlexport.reports import (
    BackbonesReport,
    EvaluateReport,
    ExportReport,
    PredictReport,
    TrainReport,
)

PROGRAM = Path(sys.executable).with_name("tlexport")
QUICK = ["--backbone", "timm/lcnet_035", "--weights", "random", "--trials", "1", "--epochs", "2"]


@pytest.fixture
def few(digits, tmp_path) -> Path:
    """Ten real scans of each of two digits."""
    return digit_scans.some(digits, tmp_path / "few", "27", 10)


def three_parts(err: str) -> bool:
    lines = err.splitlines()
    return (
        lines[0].startswith("Error: expected ")
        and any(line.startswith("  got: ") for line in lines)
        and lines[-1].startswith("  fix: ")
    )


OUT = ["-o", "{tmp}/new.bundle"]
FEW, BUNDLE, FILE = "{few}", "{bundle}", "{few}/2/0002.png"

WRONG = [
    # command line, exit code, parts of the message
    (["train", "{tmp}/none", *OUT], 5, ["with a sub-folder per class", "nothing there"]),
    (["train", "{few}/2", *OUT], 5, ["at least two class folders", "images beside them"]),
    (["train", FEW, *OUT, "--backbone", "timm/resnet5O"], 2, ["did you mean 'resnet50'?"]),
    (["train", FEW, *OUT, "--backbone", "resnet50"], 2, ["SOURCE/NAME", "'resnet50'"]),
    (["train", FEW, *OUT, "--backbone", "keras/vgg16"], 2, ["no backbone called 'keras'"]),
    (["train", FEW, *OUT, "--weights", "none.pth"], 2, ["no file 'none.pth'"]),
    (["train", FEW, *OUT, "--weights", "package:nope-nope"], 2, ["pip install nope-nope"]),
    (["train", FEW, *OUT, "--weights", FILE], 5, ["torch checkpoint", "0002.png"]),
    (
        ["train", FEW, *OUT, "--task", "segmentation"],
        2,
        ["a task of: audio-classification, image-classification"],
    ),
    (["train", FEW, *OUT, "--augment", "0.5"], 2, ["--augment", "features are computed once"]),
    (["train", FEW, *OUT, "--trials", "0", "--seed", "-1"], 2, ["--trials", "--seed", "seed=-1"]),
    (["train", FEW, *OUT, "--seed", str(2**32)], 2, ["--seed", "4294967296"]),
    (["train", FEW, *OUT, "--weights", "package:"], 2, ["package:NAME"]),
    (["train", FEW, "-o", FEW + "/x.bundle"], 6, ["outside the folder of examples"]),
    (["train", "n" * 300, *OUT], 5, ["nothing there"]),
    (["predict", BUNDLE, "n" * 300], 5, ["no file nnn"]),
    (["verify", FILE], 6, ["no bundle.json"]),
    (["train", FEW, *OUT, "--val-fraction", "1.5"], 2, ["--val-fraction", "1.5"]),
    (["train", FEW, *OUT, "--name", "my model"], 2, ["'my model'", "shell argument"]),
    (["train", FEW, "-o", BUNDLE], 6, ["exists already", "--force"]),
    (["train", FEW, "-o", FEW, "--force"], 6, ["no bundle", "replaces bundles only"]),
    (["export", "{tmp}/none"], 6, ["bundle.json", "tlexport train -o"]),
    (["export", FEW], 6, ["bundle.json"]),
    (["export", BUNDLE, "--target", "coreml"], 2, ["a target of: onnx"]),
    (["export", BUNDLE, "--triton", "2024"], 2, ["no Triton release called '2024'"]),
    (["evaluate", BUNDLE, "{tmp}/none"], 5, ["nothing there"]),
    (["evaluate", FEW, FEW], 6, ["bundle.json"]),
    (["evaluate", BUNDLE, "{odd}"], 5, ["folders kitten", "the model has no label for"]),
    (["evaluate", BUNDLE, FEW, "--runtime", "ort"], 2, ["NAME@WHERE", "'ort'"]),
    (["evaluate", BUNDLE, FEW, "--runtime", "otr@cpu"], 2, ["did you mean 'ort'?"]),
    (["evaluate", BUNDLE, FEW, "--batch", "0"], 2, ["--batch", "batch=0"]),
    (["evaluate", BUNDLE, FEW, "--threads", "-2"], 2, ["--threads"]),
    (["predict", BUNDLE], 5, ["files to ask about", "none named"]),
    (["predict", BUNDLE, "{tmp}/a.png", FILE, "{tmp}/b.png"], 5, ["a.png", "b.png"]),
    (["predict", FEW, FILE], 6, ["bundle.json"]),
    (["predict", BUNDLE, FILE, "--top", "0"], 2, ["--top"]),
    (["predict", BUNDLE, FILE, "--runtime", "tvm@cpu"], 2, ["no runtime called 'tvm'"]),
    (["predict", BUNDLE, "{odd}/kitten/text.png"], 5, ["1 of 1 broken", "no image"]),
    (["backbones", "resnet5000"], 2, ["no backbone called 'resnet5000'"]),
]


@pytest.mark.parametrize(("line", "code", "parts"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_it_is_told_what_is_wrong_and_what_to_do(
    run, few, digits_bundle, tmp_path, line, code, parts
):
    odd = tmp_path / "odd"
    (odd / "kitten").mkdir(parents=True)
    (odd / "kitten" / "text.png").write_text("not an image")
    places = {"tmp": tmp_path, "few": few, "bundle": digits_bundle, "odd": odd}
    found, out, err = run(*(arg.format(**places) for arg in line))
    assert found == code, err
    assert three_parts(err), err
    for part in parts:
        assert part in err
    assert out == "" or "predict" in line[0]
    assert not (tmp_path / "new.bundle").exists()


USAGE = [
    (["train"], "Missing argument 'DATA'"),
    (["train", "x"], "Missing option '-o'"),
    (["train", "x", "-o", "y", "--trials", "many"], "'many' is not a valid integer"),
    (["train", "x", "-o", "y", "--trails", "3"], "No such option '--trails'"),
    (["export"], "Missing argument 'BUNDLE'"),
    (["evaluate", "x"], "Missing argument 'DATA'"),
    (["predict"], "Missing argument 'SOURCE'"),
    (["backbones", "a", "b"], "unexpected extra argument"),
    (["--nonsense"], "No such option '--nonsense'"),
]


@pytest.mark.parametrize(("line", "message"), USAGE, ids=[" ".join(u[0]) for u in USAGE])
def test_a_line_that_cannot_be_parsed_shows_the_usage(run, line, message):
    code, out, err = run(*line)
    assert code == 2
    assert out == ""
    assert message.lower().replace("'", "") in err.lower().replace("'", "").replace(":", "")
    assert err.startswith("Usage: tlexport")


def test_broken_images_are_listed_with_the_way_out(run, few, tmp_path):
    (few / "2" / "bad.png").write_text("x")
    (few / "7" / "worse.png").write_bytes(b"")
    line = ["train", few, "-o", tmp_path / "b", *QUICK]
    code, out, err = run(*line)
    assert code == 5
    assert out == ""
    for part in ("2 broken of 22", "bad.png", "worse.png", "--skip-broken"):
        assert part in err
    code, out, err = run(*line, "--skip-broken")
    assert code == 0
    assert "left out, 2 broken:" in out
    assert "worse.png" in out


def test_predict_answers_what_it_can_and_fails_for_the_rest(run, few, digits_bundle):
    (few / "2" / "bad.png").write_text("x")
    good = sorted((few / "7").iterdir())[0]
    code, out, err = run("predict", digits_bundle, good, few / "2" / "bad.png", "--json")
    assert code == 5
    report = msgspec.json.decode(out, type=PredictReport)
    assert report.predictions[0].labels
    assert report.predictions[1].error
    assert "1 of 2 broken" in err


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (["train", "{few}", "-o", "{tmp}/b", *QUICK], TrainReport),
        (["export", "{bundle}", "--debug-free"], ExportReport),
        (["evaluate", "{bundle}", "{few}"], EvaluateReport),
        (["predict", "{bundle}", "{few}/7/{seven}"], PredictReport),
        (["backbones", "torchvision/resnet*"], BackbonesReport),
    ],
)
def test_json_stands_alone_on_stdout_and_reads_back_as_the_report(
    few, digits_bundle, tmp_path, line, report
):
    """In a process of its own with debug logs, so that whatever prints would be seen."""
    seven = sorted(path.name for path in (few / "7").iterdir())[0]
    places = {"tmp": tmp_path, "few": few, "bundle": digits_bundle, "seven": seven}
    args = [arg.format(**places) for arg in line if arg != "--debug-free"]
    env = os.environ | {"PYTHONWARNINGS": "always"}
    ran = subprocess.run(
        [PROGRAM, "--debug", *args, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert msgspec.json.decode(ran.stdout.encode(), type=report)
    assert json.loads(ran.stdout)
    assert "Traceback" not in ran.stderr


def test_without_a_terminal_nothing_is_drawn_on_stderr(few, tmp_path):
    ran = subprocess.run(
        [PROGRAM, "train", few, "-o", tmp_path / "b", *QUICK],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "accuracy" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert f"bundle: {tmp_path / 'b'}" in ran.stdout, "long lines are not wrapped in a pipe"


def test_brackets_in_names_are_not_taken_for_markup(run, few, tmp_path):
    shutil.move(few / "2", few / "[red]two[bold]")
    code, _, _ = run("train", few, "-o", tmp_path / "[b]", *QUICK)
    assert code == 0
    code, out, _ = run("evaluate", tmp_path / "[b]", few)
    assert code == 0
    assert "[red]two[bold]" in out
    code, out, _ = run("predict", tmp_path / "[b]", *sorted((few / "[red]two[bold]").iterdir())[:1])
    assert code == 0
    assert "[red]two[bold]" in out


def test_debug_shows_the_traceback(few):
    ran = subprocess.run(
        [PROGRAM, "--debug", "export", few], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert "Traceback" in ran.stderr
    assert "bundle.json" in ran.stderr


def test_backbones_lists_all_sources_one_name_a_line(run):
    code, out, _ = run("backbones", "mobilenet")
    names = out.split()
    assert code == 0
    assert "torchvision/mobilenet_v3_large" in names
    assert "timm/mobilenetv3_small_050" in names
    assert all("mobilenet" in name for name in names)
    assert len(names) == len(out.splitlines())


def test_an_exception_that_nobody_translated_is_a_message_and_debug_shows_it(run, monkeypatch):
    def odd(pattern: str) -> None:
        raise ZeroDivisionError("by zero\nmore")

    monkeypatch.setattr("tlexport.stages.backbones.list_backbones", odd)
    code, out, err = run("backbones")
    assert (code, out) == (1, "")
    assert three_parts(err), err
    assert "got: ZeroDivisionError: by zero\n" in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "backbones"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_leaves_nothing(few, tmp_path, number):
    bundle = tmp_path / "b"
    line = [sys.executable, "-m", "tlexport"]
    subprocess.run([*line, "train", few, "-o", bundle, *QUICK], check=True, capture_output=True)
    process = subprocess.Popen(
        [*line, "export", bundle], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(bundle.glob(".export.*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # either is 130 in a shell
    assert err.strip() == "Stopped."
    assert not [path.name for path in bundle.iterdir() if path.name.startswith(".")]


def test_a_search_that_is_stopped_says_so_and_no_more(few, tmp_path):
    line = [sys.executable, "-c", textwrap.dedent(STOPPED), str(few), str(tmp_path / "b")]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 130
    lines = ran.stderr.split("\n")
    assert [line for line in lines if line] == [
        "What is done so far is kept: the same command goes on from there.",
        "Stopped.",
    ]


STOPPED = """
    import sys
    from tlexport.cli import main
    from tlexport.training import head

    def stop(*args):
        raise KeyboardInterrupt

    head._fit = stop
    data, output = sys.argv[1:]
    more = ["--backbone", "timm/lcnet_035", "--weights", "random"]
    main(["train", data, "-o", output, *more])
"""
