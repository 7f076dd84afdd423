"""Asks an onnxruntime which versions its loader takes.

Run as a script by measure_release.py, in a process whose onnxruntime is the one to be asked; prints
a JSON object: {"onnxruntime": version, "ir_version": newest, "opsets": {domain: newest},
"operators": [those of com.microsoft that it has]}; the arguments are operators to try beside those
that it tells itself. A domain of which it takes any version, since it does not
know it, is left out. Models are written here byte by byte, so that no `onnx` decides how new they
can be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as library

FIRST, LAST = 7, 60
"""Versions that are tried, one after the other."""

DOMAINS = (
    *("ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft"),
    *("com.ms.internal.nhwc",),
)
TOO_NEW = re.compile(r"Unsupported model IR version|is under development|till opset")
NEVER_FATAL = 4
MICROSOFT, ABSENT = "com.microsoft", "is not a registered function/op"


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def model(
    ir_version: int, opsets: dict[str, int], operator: tuple[str, str] = ("Identity", "")
) -> bytes:
    """An ONNX file: y = operator(x), float [1]; the operator's name and domain."""
    name, domain_of_it = operator
    shape = _bytes(2, _bytes(1, _number(1, 1)))
    kind = _bytes(2, _bytes(1, _number(1, 1) + shape))
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, name.encode())
    node += _bytes(7, domain_of_it.encode()) if domain_of_it else b""
    graph = _bytes(1, node) + _bytes(2, b"g")
    graph += _bytes(11, _bytes(1, b"x") + kind) + _bytes(12, _bytes(1, b"y") + kind)
    imports = b"".join(
        _bytes(8, _bytes(1, b"" if domain == "ai.onnx" else domain.encode()) + _number(2, version))
        for domain, version in opsets.items()
    )
    return _number(1, ir_version) + _bytes(7, graph) + imports


def reads(file: bytes) -> bool:
    """Whether the loader takes the versions; a kernel that is missing is another matter."""
    return TOO_NEW.search(refusal(file)) is None


def refusal(file: bytes) -> str:
    """What onnxruntime says against a file, "" where nothing."""
    settings = ort.SessionOptions()
    settings.log_severity_level = NEVER_FATAL
    try:
        ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        return str(error)
    return ""


def has(operator: str) -> bool:
    """Whether com.microsoft has an operator of that name; how it is called is another matter."""
    return ABSENT not in refusal(model(8, {"ai.onnx": 17, MICROSOFT: 1}, (operator, MICROSOFT)))


def limits(tried_too: Sequence[str] = ()) -> dict[str, object]:
    """The newest IR version, the newest opset of each domain, operators of com.microsoft."""
    opsets = {}
    for domain in DOMAINS:
        tried = range(FIRST if domain == "ai.onnx" else 1, LAST)
        wanted = ({"ai.onnx": FIRST, domain: version} for version in tried)
        newest = max(o[domain] for o in wanted if reads(model(3, o)))
        if newest < LAST - 1:
            opsets[domain] = newest
    newest = max(v for v in range(3, LAST) if reads(model(v, {"ai.onnx": FIRST})))
    tells = getattr(library, "get_all_operator_schema", None)  # older ones do not
    schemas = tells() if tells else []
    names = {*tried_too, *(each.name for each in schemas if each.domain == MICROSOFT)}
    told = {"ir_version": newest, "opsets": opsets, "operators": sorted(filter(has, names))}
    return {"onnxruntime": ort.__version__, **told}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(limits(sys.argv[1:])))
