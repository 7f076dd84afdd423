import json

import msgspec
import pytest
import small_bundles

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.reports import ParityReport


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


def run(*args):
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code


def shifted(arrays):
    arrays["head.bias"][2] += 0.5


@pytest.fixture
def broken(bundle, tmp_path):
    edited = small_bundles.edit(small_bundles.healthy_onnx(), tmp_path / "e.onnx", shifted)
    small_bundles.put_artifact(bundle, edited)
    return bundle


def test_a_pass_is_told_in_a_table_of_80_columns(bundle, capsys):
    assert run("verify", bundle) == 0
    out, err = capsys.readouterr()
    assert out.startswith("passed: ort@cpu against eager@cpu, 12 golden samples\n")
    assert "x the original's own rounding (8x is allowed)" in out
    assert "labels: 0 of 12 changed" in out
    assert sum(line.startswith("answers ") for line in out.splitlines()) == 4
    assert max(len(line) for line in out.splitlines()) <= 80
    assert err == ""


def test_a_failure_is_printed_kept_and_exits_with_3(broken, capsys):
    assert run("verify", broken) == 3
    out, err = capsys.readouterr()
    assert out.startswith("FAILED: ort@cpu against eager@cpu")
    assert "logits[2] for golden sample" in out
    assert "became eel, margin" in out
    assert "cause 1, weights: one weight of the file is not the bundle's: head.bias[2]" in out
    assert "expected ort@cpu to answer as eager@cpu does" in err
    assert "head.bias[2] is" in err
    page = (Bundle(broken).root / "reports" / "parity-onnx-fp32.html").read_text()
    assert "<svg" in page
    assert "head.bias[2] is" in page
    assert not Bundle(broken).report("parity-onnx-fp32", ParityReport).passed


@pytest.mark.parametrize("name", ["bundle", "broken"])
def test_json_is_the_report_alone(name, request, capsys):
    root = request.getfixturevalue(name)
    assert run("verify", root, "--json") == (0 if name == "bundle" else 3)
    out = capsys.readouterr().out
    report = msgspec.json.decode(out, type=ParityReport)
    assert report == Bundle(root).report("parity-onnx-fp32", ParityReport)
    assert json.loads(out)["passed"] is (name == "bundle")


def test_options_reach_the_stage(bundle, capsys):
    args = ("--max-batch", "3", "--tolerance", "0.01", "--reference", "golden@bundle")
    assert run("verify", bundle, "--json", *args) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ParityReport)
    assert report.tolerance == 0.01
    assert report.reference == "golden@bundle"
    assert max(check.batch for check in report.checks) == 3


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--candidate", "ort"), 2, "NAME@WHERE"),
        (("--candidate", "ortt@cpu"), 2, "did you mean 'ort'?"),
        (("--tolerance", "0"), 2, "--tolerance"),
        (("--max-batch", "0"), 2, "--max-batch"),
        (("--artifact", "onnx-int8"), 6, "got: onnx-fp32"),
    ],
)
def test_bad_requests(bundle, capsys, args, code, told):
    assert run("verify", bundle, *args) == code
    assert told in capsys.readouterr().err


def test_no_bundle(tmp_path, capsys):
    assert run("verify", tmp_path / "none") == 6
    assert "no bundle.json" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert run("verify", "--help") == 0
    assert (
        "  tlexport verify demo/digits.bundle --candidate triton@localhost:8001\n"
        in capsys.readouterr().out
    )
