"""The script that measures a row: this environment's onnxruntime stands for the wheel."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from tlexport.errors import MissingDependency, OptionError
from tlexport.serving import limits_of_onnxruntime as probe
from tlexport.serving import measure_release
from tlexport.serving.measure_release import Limits, measure, row
from tlexport.serving.releases import microsoft_operators, releases


@pytest.fixture(scope="module")
def limits():
    return measure()


def test_the_models_it_writes_are_onnx():
    model = onnx.load_from_string(probe.model(8, {"ai.onnx": 17, "ai.onnx.ml": 3}))
    onnx.checker.check_model(model)
    assert (model.ir_version, model.graph.node[0].op_type) == (8, "Identity")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets == {"": 17, "ai.onnx.ml": 3}


def test_what_it_finds_is_what_this_onnxruntime_refuses(limits):
    assert limits.onnxruntime == ort.__version__
    newest = limits.opsets["ai.onnx"]
    assert newest >= 23
    assert probe.reads(probe.model(limits.ir_version, limits.opsets))
    assert not probe.reads(probe.model(limits.ir_version + 1, limits.opsets))
    for domain, version in limits.opsets.items():
        assert not probe.reads(probe.model(3, {"ai.onnx": 7, domain: version + 1}))


def test_operators_are_tried_one_by_one(limits):
    assert {"Gelu", "Attention", "FusedConv"} <= set(limits.operators)
    assert probe.has("Gelu")
    assert not probe.has("Nothing")
    measured = max(tuple(map(int, v.split("."))) for v in microsoft_operators().values())
    if tuple(map(int, limits.onnxruntime.split("."))) <= measured:
        assert set(limits.operators) <= set(microsoft_operators())


def test_a_release_of_this_onnxruntime_has_this_row(limits):
    """Between two rows of the table: no limit falls from a version to the next."""
    numbers = [int(part) for part in limits.onnxruntime.split(".")]
    older = [r for r in releases() if [*map(int, r.onnxruntime_version.split("."))] <= numbers]
    found = row("99.01", "9.9.9", limits).split(",")
    assert found[:3] == ["99.01", "9.9.9", ort.__version__]
    assert [int(cell) for cell in found[3:]] >= [
        older[-1].max_opset,
        older[-1].max_ir_version,
        older[-1].max_ml_opset,
    ]


def test_a_domain_that_has_a_new_version_is_told_of():
    opsets = {"ai.onnx": 30, "ai.onnx.ml": 6, "com.microsoft": 2}
    with pytest.raises(OptionError, match=r"com.microsoft up to version 1") as caught:
        row("99.01", "9.9.9", Limits("9.9.9", 15, opsets))
    assert "a column" in caught.value.fix


def test_an_onnxruntime_that_does_not_load(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('built for another numpy')\n")
    with pytest.raises(MissingDependency, match="built for another numpy"):
        measure(tmp_path)


@pytest.mark.parametrize("version", ["newest", "1.x"])
def test_what_is_no_version(tmp_path, version):
    with pytest.raises(OptionError, match="a version of onnxruntime"):
        measure_release.install(version, tmp_path)


def test_an_index_without_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"a wheel of onnxruntime==1.20.1 for"):
        measure_release.install("1.20.1", tmp_path)


def test_it_is_a_command(capsys, monkeypatch, limits):
    def already_here(version: str, folder: Path) -> None:
        assert version == "1.2.3"

    monkeypatch.setattr(measure_release, "install", already_here)
    assert measure_release.main(["99.01", "9.9.9", "1.2.3"]) == 0
    assert capsys.readouterr().out == row("99.01", "9.9.9", limits) + "\n"
    assert measure_release.main([]) == 2
    assert "ONNXRUNTIME_VERSION" in capsys.readouterr().err
