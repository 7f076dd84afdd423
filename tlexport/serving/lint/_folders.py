"""Rules of the folder: name, configuration, versions, files."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterator

from tlexport.checks import check_name
from tlexport.errors import OptionError
from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import PLATFORMS, Model, Scope

BACKENDS = (
    *("onnxruntime", "python", "tensorrt", "pytorch", "openvino", "tensorflow", "dali", "fil"),
    *("identity", "repeat", "square", "vllm", "tensorrtllm", "redis"),
)
"""Backends that NVIDIA's images or projects bring; any other may be somebody's own."""

FOREIGN = {"onnx": "onnxruntime", "onnxruntime_onnx": "onnxruntime", "ort": "onnxruntime"}
"""What people and tools write in place of a backend's name."""

LARGEST = 2**63 - 1
CLASS = b"TritonPythonModel"


def name(model: Model, scope: Scope) -> Iterator[Finding]:
    """The folder's name, which becomes a URL and a shell's argument."""
    try:
        check_name(model.name)
    except OptionError as error:
        yield model.finding(
            "model-name",
            model.folder,
            error.expected,
            got=error.got,
            fix="rename or move that folder: the server takes every folder there for a model",
        )
    if model.config.name and model.config.name != model.name:
        yield model.finding(
            "config-name",
            ("name",),
            f"the folder's name {model.name!r}, or none",
            got=repr(str(model.config.name)),
            fix=f'write name: "{model.name}", or leave it out',
        ).mended(*model.text.set(("name",), f'"{model.name}"'))


def text(model: Model, scope: Scope) -> Iterator[Finding]:
    """Whether config.pbtxt can be read at all."""
    if model.fault:
        place = re.match(r"(\d+):\d+ : (?:'.*?' *: *)?(.*)", model.fault, re.DOTALL)
        where = f"line {place[1]}: {place[2]}" if place else model.fault
        yield model.finding(
            "config-parse",
            model.config_path,
            "the text of a Triton model configuration",
            got=" ".join(where.split()),
            fix="correct that line, or package the model again",
        )


def backend(model: Model, scope: Scope) -> Iterator[Finding]:
    """Who is to serve it."""
    given, platform = str(model.config.backend), str(model.config.platform)
    if given in FOREIGN:
        yield model.finding(
            "backend",
            ("backend",),
            "a backend that there is",
            got=repr(given),
            fix=f'write backend: "{FOREIGN[given]}"',
        ).mended(*model.text.set(("backend",), f'"{FOREIGN[given]}"'))
    elif given and not _may_be(given):
        near = difflib.get_close_matches(given, BACKENDS, 1)
        yield model.finding(
            "backend",
            ("backend",),
            f"a backend that there is: {', '.join(BACKENDS[:4])} ...",
            got=repr(given),
            fix=f'write backend: "{near[0]}"',
        )
    elif platform and platform not in PLATFORMS and not given:
        yield model.finding(
            "backend",
            ("platform",),
            f"one of {', '.join(PLATFORMS)}",
            got=repr(platform),
            fix="write backend instead, and leave platform out",
        )
    elif given and platform and PLATFORMS.get(platform, given) != given:
        yield model.finding(
            "backend",
            ("platform",),
            f"the platform of the backend {given!r}, or none",
            got=repr(platform),
            fix="leave platform out: backend says it",
        )
    elif not model.backend:
        yield model.finding(
            "backend",
            model.config_path,
            "a backend, or a file by whose name it can be told, such as 1/model.onnx",
            got="neither",
            fix='write backend: "onnxruntime" and put the model at 1/model.onnx',
        )


def _may_be(given: str) -> bool:
    """A name that is no slip of the pen: a server may well have it."""
    return given in BACKENDS or not difflib.get_close_matches(given, BACKENDS, 1, 0.8)


def versions(model: Model, scope: Scope) -> Iterator[Finding]:
    """Folders of versions: the server reads their names as C does, "1abc" as 1."""
    entries = sorted(path for path in model.folder.iterdir() if path.is_dir())
    for path in entries:
        read = re.match(r"[+-]?\d+", path.name, re.ASCII)
        if read is None or (path.name[0] == "0" and path.name != "0"):
            continue  # passed over, with a warning in the log
        number = int(read[0])
        if not 0 <= number <= LARGEST or number not in model.numbers:
            kills = " and ends for it" if abs(number) > LARGEST else ""
            yield model.finding(
                "version-folder",
                path,
                "a version's folder named by a plain number",
                got=f"{path.name!r}, which the server reads as {number}{kills}",
                fix="rename it to the next number, or move it out of the model's folder",
            )
    if not model.numbers:
        yield model.finding(
            "version-policy",
            model.folder,
            f"a version folder such as {model.name}/1",
            got=", ".join(path.name for path in entries) or "no folder",
            fix="put the model into a folder whose name is a number, or remove this one",
        )


def policy(model: Model, scope: Scope) -> Iterator[Finding]:
    """Which versions the policy leaves."""
    if not model.numbers:
        return
    there = ", ".join(map(str, model.numbers))
    if not model.served:
        yield model.finding(
            "version-policy",
            ("version_policy",),
            "a policy that leaves a version to serve",
            got=f"none of the versions there are: {there}",
            fix="name one of these, or leave version_policy out: the newest is served",
        )
    asked = list(model.config.version_policy.specific.versions)
    gone = [number for number in asked if number not in model.numbers]
    if gone and model.served:
        kept = ", ".join(str(number) for number in asked if number not in gone)
        yield model.finding(
            "version-policy-partly",
            ("version_policy", "specific", "versions"),
            f"versions that are there: {there}",
            got=", ".join(map(str, gone)),
            fix=f"write versions: [ {kept} ]",
        )


def files(model: Model, scope: Scope) -> Iterator[Finding]:
    """The file that the backend opens of each version it serves."""
    known = model.backend in ("python", "onnxruntime", "tensorrt")
    for number in model.served if known else []:
        wanted = model.file(number)
        if wanted.is_file():
            continue
        folder = model.folder / str(number)
        beside = sorted(path for path in folder.rglob("*") if path.suffix == wanted.suffix)
        named = bool(model.config.default_model_filename)
        found = beside[0].relative_to(folder) if beside else None
        fix = f"put the model there as {wanted.name}"
        if found is not None:
            fix = f"rename {found} to {wanted.relative_to(folder)}"
            fix += "" if found.parts[1:] else f', or write default_model_filename: "{found}"'
        yield model.finding(
            "model-file",
            ("default_model_filename",) if named else wanted,
            f"a file {wanted.relative_to(model.folder)}",
            got=f"{found} beside it" if found else "none",
            fix=fix,
        )


def python(model: Model, scope: Scope) -> Iterator[Finding]:
    """A Python model's file: it parses, and has the class that the server looks for."""
    for number in model.served if model.backend == "python" else []:
        path = model.file(number)
        if not path.is_file():
            continue
        source = path.read_bytes()
        try:
            ast.parse(source)
        except (SyntaxError, ValueError) as error:
            version = ".".join(map(str, sys.version_info[:2]))
            yield model.finding(
                "python-syntax",
                path,
                f"the syntax of Python {version}, which is the one at hand",
                got=str(error),
                fix="correct that line, unless the server's Python is a newer one",
            )
        if CLASS not in source and b"import *" not in source:
            yield model.finding(
                "python-class",
                path,
                f"a class {CLASS.decode()}, which the server looks for",
                got="none of that name",
                fix=f"write class {CLASS.decode()} with execute(self, requests)",
            )


RULES = (name, text, backend, versions, policy, files, python)
