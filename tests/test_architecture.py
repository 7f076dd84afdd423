"""The house is as CONTRIBUTING.md draws it: floors, addresses, sizes."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "tlexport"
VOCABULARY = {
    "errors",
    "progress",
    "files",
    "spec",
    "checks",
    "options",
    "environment",
    "reports",
    "plugins",
    "child",
}
BELOW = {
    "preprocess": set(),
    "bundle": VOCABULARY,
    "measure": VOCABULARY,
    "pages": VOCABULARY,
    "backbones": VOCABULARY | {"bundle"},
    "serving": VOCABULARY | {"bundle"},
    "tasks": VOCABULARY | {"bundle", "backbones", "preprocess"},
    "importers": VOCABULARY | {"bundle", "backbones", "preprocess", "tasks"},
    "networks": VOCABULARY | {"bundle"},
    "arithmetic": set(),
    "training": VOCABULARY | {"bundle", "networks", "tasks", "serving", "measure"},
    "targets": VOCABULARY | {"bundle", "networks", "serving", "measure"},
    "runtimes": VOCABULARY | {"bundle", "networks", "arithmetic", "serving", "measure"},
    "diagnosis": VOCABULARY | {"bundle", "networks", "arithmetic", "targets", "measure"},
}
BELOW["traffic"] = VOCABULARY | {"bundle", "measure", "runtimes"}
BELOW["inquiry"] = BELOW["traffic"] | {"tasks", "serving", "diagnosis"}
BELOW["publishing"] = VOCABULARY | {"bundle", "measure", "serving", "runtimes", "inquiry"}
BELOW["stages"] = VOCABULARY | set(BELOW)
BELOW["pipeline"] = VOCABULARY | {"stages"}
BELOW["cli"] = VOCABULARY | {"pages", "stages", "pipeline"}
BELOW["__main__"] = {"cli"}
PLUGINS = (
    *("backbones", "tasks", "importers", "targets", "runtimes", "diagnosis"),
    *("pages", "stages", "preprocess"),
)
"""Rooms whose public files must not know each other."""

LATE = ("tlexport.stages", "tlexport.pages", "tlexport.pipeline")
"""What a command imports in its body alone: `--help` waits for none of it."""

ADDRESSES = {
    "click": {"cli"},
    "rich": {"cli"},
    "torch": {
        "backbones",
        "tasks",
        "importers",
        "networks",
        "training",
        "targets",
        "runtimes._network",
        "runtimes.compile",
        "arithmetic",
        "diagnosis",
    },
    "torchvision": {"backbones.torchvision", "tasks._augment_images"},
    "peft": {"training.lora"},
    "lightning": {"training"},
    "mlflow": {"training.trackers"},
    "timm": {"backbones.timm"},
    "torchmetrics": {"tasks"},
    "transformers": {"backbones", "importers"},
    "datasets": {"tasks"},
    "tokenizers": {"preprocess.text"},
    "soundfile": {"preprocess.audio"},
    "soxr": {"preprocess.audio"},
    "optuna": {"training", "stages._space"},
    "onnx": {"targets", "importers.onnx", "serving.lint", "diagnosis"},
    "onnxruntime": {
        *("runtimes.ort", "runtimes._bound", "serving.backends", "serving.limits_of_onnxruntime"),
        *("targets", "diagnosis"),
    },
    "obstore": {"serving.remote"},
    "tritonclient": {"runtimes._wire", "serving"},
    "PIL": {"preprocess.image"},
    "jinja2": {"pages._template", "serving.manifests"},
    "mlperf_loadgen": {"measure.scenarios"},
    "openvino": {"runtimes.openvino"},
    "pynvml": {"traffic.gpus"},
    "tlexport": set(),
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below tlexport."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(tree: ast.Module, *, top_only: bool = False) -> set[str]:
    """Full names of what a module imports; names taken from a package count as its modules."""
    found = set()
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(tree: ast.Module) -> set[str]:
    """Our modules that a module imports, by their name below tlexport."""
    found = set()
    for full in imports(tree):
        if full.split(".")[0] == "tlexport":
            name = full.removeprefix("tlexport").removeprefix(".")
            while name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_arrows_fall(name: str) -> None:
    room = name.split(".")[0]
    for other in ours(MODULES[name]):
        assert other, f"{name} imports the package root"
        other_room = other.split(".")[0]
        if other_room == room:
            continue
        allowed = BELOW.get(room, VOCABULARY)
        assert other_room in allowed, f"{name} imports {other}, which does not stand below it"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.split(".")[0] in PLUGINS))
def test_plugins_do_not_know_each_other(name: str) -> None:
    room, _, leaf = name.partition(".")
    for other in ours(MODULES[name]):
        other_room, _, other_leaf = other.partition(".")
        if other_room == room and other_leaf not in ("", leaf):
            assert other_leaf.startswith("_"), f"{name} imports its sibling {other}"


def test_no_circle() -> None:
    graph = {name: ours(tree) - {name} for name, tree in MODULES.items() if name}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("library", sorted(set(ADDRESSES) - {"tlexport"}))
def test_foreign_libraries_have_known_addresses(library: str) -> None:
    for name, tree in MODULES.items():
        if any(full.split(".")[0] == library for full in imports(tree)):
            known = any(name == a or name.startswith(a + ".") for a in ADDRESSES[library])
            assert known, f"{name} imports {library}; it belongs in {sorted(ADDRESSES[library])}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.split(".")[0] == "cli"))
def test_the_command_line_starts_without_the_stages(name: str) -> None:
    for full in imports(MODULES[name], top_only=True):
        assert not full.startswith(("tlexport.stages", "tlexport.pages", "tlexport.pipeline")), (
            f"{name}: {full}"
        )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_sizes_and_first_lines(name: str) -> None:
    tree = MODULES[name]
    first = (ast.get_docstring(tree) or "").split("\n")[0]
    assert 0 < len(first) <= 60, f"{name} has no first line of at most 60 characters: {first!r}"
    path = ROOT / Path(*name.split(".")) if name else ROOT
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{name}.{node.name} has {length} lines"
            given = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
            if not name.startswith("cli.") or node.name != "command":
                assert len(given) <= 5, f"{name}.{node.name} takes {len(given)} parameters"


def test_no_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
    assert not [name for name in MODULES if set(name.split(".")) & drawers]


def test_no_print_outside_the_command_line() -> None:
    for name, tree in MODULES.items():
        if not name.startswith("cli"):
            calls = [
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            ]
            assert "print" not in calls, name
