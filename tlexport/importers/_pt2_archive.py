"""A torch.export archive, read without running anything.

`torch.export.load` (2.9 to 2.14) runs code that an archive brings along in more than one way: it
unpickles sample inputs, weights and constants that `weights_only` refuses, evaluates symbolic
sizes as Python text, writes names of tensors into a function it compiles, imports the modules that
a tree of inputs names, calls whatever in `torch` a node names (`torch.os.system` is there), and
loads compiled libraries. So the archive is taken apart here first, held against what a model's
graph needs, and put together anew: torch reads nothing that was not looked at.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.export.pt2_archive import _package

from tlexport.errors import DataError

PARTS = (
    (re.compile(r"models/model\.json"), "graph"),
    (re.compile(r"data/weights/model_weights_config\.json"), "payload"),
    (re.compile(r"data/constants/model_constants_config\.json"), "payload"),
    (re.compile(r"data/weights/weight_\d+"), "bytes"),
    (re.compile(r"data/constants/tensor_\d+"), "bytes"),
)
LEFT = re.compile(
    r"data/sample_inputs/model\.pt|extra/.*|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
"""Members that are written anew or left out; sample inputs are a pickle, and not needed."""

NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
TARGET = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|torchaudio|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|map_impl|scan|associative_scan"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(sym_(int|float|max|min|not|ite|sqrt|sum)|_sym_sqrt)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|getitem"
    r"|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
FORBIDDEN = ("torch.ops.aten.from_file",)
"""Operators that reach outside the graph: this one opens a file, and can make one."""

FUNCTIONS = {
    *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
    *("FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv"),
    *("IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat"),
    *("Identity", "Max", "Min", "Abs", "Pow", "floor", "ceiling", "Eq", "Ne", "Gt", "Ge", "Lt"),
    *("Le", "And", "Or", "Not", "true", "false", "oo", "int_oo", "True", "False", "Symbol"),
    *("Integer", "Rational", "Float", "Add", "Mul", "Infinity", "NegativeInfinity"),
}
SYMBOL = re.compile(r"[szu]u?f?\d+")
NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name),
    *(ast.keyword, ast.Load, ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def load(path: Path) -> torch.export.ExportedProgram:
    """The program in a .pt2 file.

    Raises:
        DataError: it is damaged, from another version, or holds more than a graph and tensors.
    """
    members = _members(path)
    try:
        clean = _rewritten(members, path)
        return torch.export.load(io.BytesIO(clean))
    except DataError:
        raise
    except Exception as error:  # torch raises nearly anything on an archive it does not know
        raise DataError(
            f"a program in {path.name!r} that torch {torch.__version__} reads",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            fix="save it again with this version's torch.export.save",
        ) from error


def _members(path: Path) -> dict[str, bytes]:
    """The archive's files by their name below its root folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len({name.casefold() for name in names}) < len(names):
                _refuse(path, "two members of one name")
            return {name.partition("/")[2]: archive.read(name) for name in names}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"a file {str(path)!r} that torch.export.save wrote",
            got=str(error) or type(error).__name__,
            fix="check the path, or save the program again",
        ) from error


def _rewritten(members: dict[str, bytes], path: Path) -> bytes:
    if "models/model.json" not in members:
        raise DataError(
            f"a program in {path.name!r}, as torch.export.save writes it",
            got=f"an archive of {', '.join(sorted(members)[:4])} ...",
            fix="save it with torch.export.save of torch 2.9 or newer",
        )
    stream = io.BytesIO()
    with _package.PT2ArchiveWriter(stream) as writer:
        for name, content in members.items():
            kind = next((kind for part, kind in PARTS if part.fullmatch(name)), None)
            if kind is None:
                if not LEFT.fullmatch(name):
                    _refuse(path, _what(name))
                continue
            if kind == "payload":
                _hold_payload(json.loads(content), path)
            elif kind == "graph":
                content = json.dumps(_held_graph(json.loads(content), path)).encode()
            writer.write_bytes(name, content)
        writer.write_bytes("data/sample_inputs/model.pt", b"")
    return stream.getvalue()


def _what(name: str) -> str:
    if name.startswith("data/aotinductor"):
        return f"{name}, a compiled library"
    if name.startswith("data/"):
        return f"{name}, which only pickle reads"
    return name


def _hold_payload(config: dict[str, Any], path: Path) -> None:
    for name, entry in config["config"].items():
        plain = re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"])
        if entry["use_pickle"] or not plain:
            _refuse(path, f"{name} in {entry['path_name']}, which only pickle reads")


def _held_graph(value: Any, path: Path) -> Any:
    """The graph's JSON without what was noted of the machine it was made on; each word is held."""
    if isinstance(value, list):
        return [_held_graph(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    held = {}
    for name, inner in value.items():
        if name == "metadata" and isinstance(inner, dict):
            inner = {}
        elif name == "guards_code":
            inner = []
        elif name in ("expr_str", "in_spec", "out_spec"):
            _hold_text(name, inner, path)
        elif name == "as_operator" or (name == "target" and "inputs" in value):
            if not TARGET.fullmatch(str(inner)) or str(inner).startswith(FORBIDDEN):
                _refuse(path, f"a call of {str(inner)[:60]!r}, which is no operator of torch")
        elif isinstance(inner, str) and _no_name(name, inner):
            _refuse(path, f"the name {inner[:60]!r}")
        elif name in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
            for each in inner:
                if not NAME.fullmatch(each):
                    _refuse(path, f"the name {each[:60]!r}")
        elif name in ("as_custom_obj", "class_fqn"):
            _refuse(path, "an object of a compiled class")
        if name == "range_constraints":
            for each in inner:
                _hold_expression(each, path)
        held[name] = _held_graph(inner, path)
    return held


def _no_name(key: str, text: str) -> bool:
    """Whether a text that stands for a name in compiled code is none."""
    spoken = key in ("name", "as_name", "parameter_name", "buffer_name", "fqn", "target")
    return spoken and text != "" and not NAME.fullmatch(text)


def _hold_text(kind: str, text: str | None, path: Path) -> None:
    if not text:
        return
    if kind == "expr_str":
        _hold_expression(text, path)
    else:
        _hold_tree(json.loads(text)[1], path)


def _hold_tree(tree: dict[str, Any], path: Path) -> None:
    if tree["type"] not in TREE_TYPES or "__enum__" in str(tree["context"]):
        _refuse(path, f"inputs or outputs in a {tree['type']}")
    for child in tree["children_spec"]:
        _hold_tree(child, path)


def _hold_expression(text: str, path: Path) -> None:
    """A size may be symbols, numbers, their arithmetic, and torch's functions of them."""
    try:
        nodes: list[ast.AST] = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        nodes = [ast.Pass()]
    for node in nodes:
        known = isinstance(node, NODES)
        if isinstance(node, ast.Name):
            known = node.id in FUNCTIONS or bool(SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            known = isinstance(node.value, (int, float)) or bool(SYMBOL.fullmatch(str(node.value)))
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name)
        if not known:
            _refuse(path, f"the size {text[:60]!r}")


def _refuse(path: Path, what: str) -> NoReturn:
    raise DataError(
        f"a graph and plain tensors in {path.name!r}, which can be read without running code",
        got=what,
        fix="export plain modules with tuples, lists and dicts of tensors, and torch.export.save "
        "them again; or import the module itself with --module",
    )
