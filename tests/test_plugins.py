"""A folder is its own registry."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from tlexport import plugins
from tlexport.errors import MissingDependency, OptionError
from tlexport.stages.backbones import list_backbones


def in_fresh_python(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("folder", "some"),
    [
        ("backbones", {"timm", "torchvision"}),
        ("tasks", {"image-classification"}),
        ("targets", {"onnx"}),
        ("runtimes", {"eager", "ort", "triton", "golden"}),
        ("cli", {"run", "train", "export"}),
    ],
)
def test_the_files_of_a_folder_are_its_plug_ins(folder, some):
    names = plugins.names(folder)
    assert set(names) >= some
    assert names == sorted(names)
    assert not [name for name in names if name.startswith("_")]
    files = {
        path.stem.rstrip("_").replace("_", "-") for path in (plugins.ROOT / folder).glob("[!_]*.py")
    }
    assert set(names) == files


def test_listing_imports_none_of_them():
    imported = in_fresh_python(
        """
        import sys
        from tlexport import plugins
        for folder in ("backbones", "tasks", "targets", "runtimes", "cli"):
            assert plugins.names(folder)
        heavy = {"torch", "timm", "onnx", "onnxruntime", "tritonclient", "click", "rich", "numpy"}
        print(sorted(heavy & set(sys.modules)))
        print([m for m in sys.modules if m.startswith("tlexport.") and m.count(".") > 1])
        """
    )
    assert imported.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("onnxx", "did you mean 'onnx'?"),
        ("tensorflow-lite", "use one of the listed names"),
        ("", "use one of the listed names"),
        ("_private", "use one of the listed names"),
        ("../bundle", "use one of the listed names"),
    ],
)
def test_an_unknown_name_is_answered_with_those_there_are(name, fix):
    with pytest.raises(OptionError) as caught:
        plugins.load("targets", name)
    assert caught.value.expected == f"a target of: {', '.join(plugins.names('targets'))}"
    assert caught.value.got == f"no target called {name!r}"
    assert caught.value.fix == fix


def test_a_long_list_is_cut_and_counted():
    error = plugins.unknown("backbone", "resnet5000", [f"net{n}" for n in range(50)] + ["resnet50"])
    assert error.expected.endswith("net19 and 31 more")
    assert error.fix == "did you mean 'resnet50'?"


def test_a_missing_library_is_a_missing_dependency_and_is_still_listed():
    told = in_fresh_python(
        """
        import sys
        sys.modules["timm"] = None
        from tlexport import plugins
        from tlexport.errors import MissingDependency
        assert "timm" in plugins.names("backbones")
        try:
            plugins.load("backbones", "timm")
        except MissingDependency as error:
            print(error.expected, "|", error.fix)
        """
    )
    assert told == "the library 'timm' for backbones/timm | pip install timm"


def test_a_fault_inside_our_own_code_is_not_taken_for_a_missing_library(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "names", lambda folder: ["nothere"])
    with pytest.raises(ModuleNotFoundError) as caught:
        plugins.load("targets", "nothere")
    assert not isinstance(caught.value, MissingDependency)
    assert caught.value.name == "tlexport.targets.nothere"


@pytest.mark.parametrize("fault", ["RuntimeError('libcudart.so.99 not found\\nmore')", "OSError()"])
def test_a_library_that_does_not_load_is_a_missing_dependency_too(monkeypatch, fault):
    def broken(name: str) -> None:
        raise eval(fault)

    monkeypatch.setattr(plugins.importlib, "import_module", broken)
    with pytest.raises(MissingDependency, match="backbones/timm to load") as caught:
        plugins.load("backbones", "timm")
    assert caught.value.got.startswith(fault.partition("(")[0])
    assert "\n" not in caught.value.got


def test_a_source_that_fails_does_not_hide_the_others(monkeypatch):
    real = plugins.load

    def load(folder: str, name: str):
        if name == "timm":
            return SimpleNamespace(names=lambda: (_ for _ in ()).throw(ConnectionError("down")))
        return real(folder, name)

    monkeypatch.setattr(plugins, "load", load)
    report = list_backbones("*resnet18*")
    assert report.backbones == ("torchvision/resnet18",)
    assert report.missing == ("timm: ConnectionError: down",)
