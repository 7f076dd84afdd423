"""`tlexport import`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CODE = Path(__file__).parents[1] / "importers"
X = ("--input", "x:float32[batch,4]=-1..1")


@pytest.fixture(autouse=True)
def _where_the_users_module_lies(monkeypatch):
    monkeypatch.chdir(CODE)


def test_it_tells_what_it_took_and_what_to_do_next(run, tmp_path):
    code, out, err = run("import", "-o", tmp_path / "b", "--module", "user_net:Longer", *X)
    assert (code, err) == (0, "")
    for line in (
        "user_net:Longer, task tensors",
        "  takes x:float32[batch,4]=-1..1",
        "  answers output:float32[batch,4]",
        "golden samples: 32 drawn within the inputs' ranges (seed 0)",
        "`verify` will compare with eager@cpu: the original in PyTorch",
        f"next: tlexport export {tmp_path / 'b'}",
    ):
        assert line in out.splitlines()


def test_json_is_the_report_alone(run, tmp_path):
    code, out, _ = run(
        *("import", "-o", tmp_path / "b", "--module", "user_net:Longer", *X),
        *("--golden", 3, "--name", "longer", "--json"),
    )
    assert code == 0
    assert json.loads(out)["golden"] == 3
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["spec"]["name"] == "longer"


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "one of --backbone, --huggingface, --module, --onnx, --pt2"),
        (("--module", "user_net:Longer"), 2, "--input 'x:float32[batch,...]=LOW..HIGH'"),
        (("--module", "user_net:noisy", *X), 5, "first in inner (Noisy)"),
        (("--module", "user_net:Viewing", *X), 11, "view and reshape with -1"),
        (("--module", "user_net:Longer", *X, "--labels", "none.txt"), 5, "none.txt"),
        (("--module", "user_net:Longer", *X, "--golden", "0"), 2, "--golden"),
        (("--module", "user_net:Longer", *X, "--name", "a b"), 2, "'a b'"),
        (("--onnx", "none.onnx"), 2, "no file 'none.onnx'"),
        (("--pt2", "none.pt2"), 2, "no file 'none.pt2'"),
        (("--huggingface", "gpt2"), 2, "nothing is downloaded"),
        (("--backbone", "torchvision/resnet18"), 2, "--weights FILE"),
    ],
)
def test_bad_requests(run, tmp_path, args, code, told):
    found, out, err = run("import", "-o", tmp_path / "b", *args)
    assert (found, out) == (code, "")
    assert told in err
    assert err.splitlines()[0].startswith("Error: expected ")
    assert "  fix: " in err
    assert not (tmp_path / "b").exists()


def test_the_reference_of_an_imported_file_is_told(run, tmp_path):
    from importers import test_onnx

    file = test_onnx.old_export(tmp_path / "m.onnx", axes=test_onnx.FREE)
    inputs = ("--input", "pixels:float32[batch,3,h,w]=0..1", "--golden", 4)
    _, out, _ = run("import", "-o", tmp_path / "b", "--onnx", file, *inputs)
    assert "ort@cpu-plain: the imported file itself, unoptimised" in out
    run("export", tmp_path / "b")
    code, out, _ = run("verify", tmp_path / "b")
    assert code == 0
    assert out.startswith("passed: ort@cpu against ort@cpu-plain, 4 golden samples")
