from __future__ import annotations

import json

import pytest
from serving import bundles

from tlexport.cli import main


def run(capsys, *arguments):
    """Exit code, standard output and error of one command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def test_people_see_where_it_is_and_what_is_next(tmp_path, capsys):
    bundle = bundles.make(tmp_path / "b.bundle")
    code, out, err = run(capsys, "package", bundle.root, "-r", tmp_path / "models")
    assert (code, err) == (0, "")
    assert f"insects version 1 in {tmp_path}/models" in out
    assert "insects/1/model.onnx" in out
    assert f"next: tlexport serve {tmp_path}/models" in out


def test_json_is_alone(tmp_path, capsys):
    bundle = bundles.make(tmp_path / "b.bundle")
    arguments = ("--json", "--max-batch", 0, "--name", "other")
    code, out, _ = run(capsys, "package", bundle.root, "-r", tmp_path / "models", *arguments)
    report = json.loads(out)
    assert (code, report["model"], report["max_batch"]) == (0, "other", 0)


@pytest.mark.parametrize(
    ("proven", "arguments", "code", "message"),
    [
        (False, (), 3, "got: no report"),
        (True, ("--threads", "9999"), 2, "within the"),
        (True, ("--triton", "22.09"), 2, "a file that Triton 22.09 reads"),
        (True, ("--name", "a b"), 2, "a model name of letters"),
        (True, ("--artifact", "onnx-int8"), 6, "an artifact 'onnx-int8'"),
        (True, ("--max-batch", "-1"), 2, "--max-batch"),
    ],
)
def test_refusals_have_their_exit_code(tmp_path, capsys, proven, arguments, code, message):
    bundle = bundles.make(tmp_path / "b.bundle", proven=proven)
    place = tmp_path / "models"
    got, out, err = run(capsys, "package", bundle.root, "-r", place, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("Error: ")
    assert message in err
    assert not place.exists()


def test_no_bundle(tmp_path, capsys):
    code, _, err = run(capsys, "package", tmp_path / "nowhere")
    assert code == 6
    assert "no bundle.json" in err
