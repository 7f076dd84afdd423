"""deploy/Dockerfile: NVIDIA's image, and what preprocessing imports. No image is built here."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest

from tlexport import preprocess
from tlexport.serving import docker, pipeline
from tlexport.serving.releases import releases
from tlexport.serving.runtime_folder import PINS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
PINNED = dict(re.findall(r"^\s+([a-z0-9-]+)==([0-9.]+)", TEXT, re.MULTILINE))
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
COPIED = [
    path for path in Path(str(preprocess.__path__[0])).glob("*.py") if not path.name.startswith("_")
]
IN_THE_IMAGE = {"triton_python_backend_utils"}


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports from outside the standard library."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names)


def distributions(names: set[str]) -> set[str]:
    """The packages, as an index calls them, that bring these modules."""
    known = packages_distributions()
    return {metadata(dist)["Name"].lower() for name in names for dist in known[name]}


def test_it_installs_what_the_served_files_import_and_no_more():
    served = [*COPIED, *pipeline.STEPS.rglob("*.py")]
    assert len(COPIED) >= 3
    needed = set().union(*(imported(path) for path in served)) - IN_THE_IMAGE
    assert set(PINNED) == distributions(needed)
    assert len(re.findall(r"==", TEXT)) == len(PINNED), "a line that was not understood"


def test_the_versions_are_those_that_are_tested_here():
    for name, version in PINNED.items():
        assert version == (PINS["numpy"] if name == "numpy" else CONSTRAINTS[name])


def test_it_extends_the_newest_image():
    assert re.search(r"^ARG TRITON=(\S+)$", TEXT, re.MULTILINE)[1] == releases()[-1].triton
    (base,) = re.findall(r"^FROM (\S+)$", TEXT, re.MULTILINE)
    newest = base.replace("${TRITON}", releases()[-1].triton)
    assert newest == docker.image("")
    instructions = re.findall(r"^([A-Z]+) ", TEXT, re.MULTILINE)
    assert instructions == ["ARG", "FROM", "ENV", "RUN"], "nothing of ours is copied into it"


@pytest.mark.parametrize("name", sorted(set(PINNED) - {"numpy"}))
def test_each_runs_on_the_python_of_the_image(name):
    """Images from 24.11 on have Python 3.12."""
    low = re.fullmatch(r">=3\.(\d+)", metadata(name)["Requires-Python"])
    assert int(low[1]) <= 12


@pytest.mark.parametrize("path", COPIED, ids=lambda path: path.stem)
def test_a_copied_file_knows_nothing_of_ours(path):
    assert not imported(path) & {"tlexport", "torch"}
    assert all("tlexport" not in imported(step) for step in pipeline.STEPS.rglob("*.py"))
