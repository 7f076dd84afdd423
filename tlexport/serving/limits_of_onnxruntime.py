"""Asks an onnxruntime which versions its loader takes.

Run as a script by measure_release.py, in a process whose onnxruntime is the one to be asked; prints
a JSON object: {"onnxruntime": version, "ir_version": newest, "opsets": {domain: newest}}; a domain
of which it takes any version, since it does not know it, is left out. Models are written here byte
by byte, so that no `onnx` decides how new they can be.
"""

from __future__ import annotations

import json
import re
import sys

import onnxruntime as ort

FIRST, LAST = 7, 60
"""Versions that are tried, one after the other."""

DOMAINS = (
    *("ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft"),
    *("com.ms.internal.nhwc",),
)
TOO_NEW = re.compile(r"Unsupported model IR version|is under development|till opset")
NEVER_FATAL = 4


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def model(ir_version: int, opsets: dict[str, int]) -> bytes:
    """An ONNX file: y = Identity(x), float [1]."""
    shape = _bytes(2, _bytes(1, _number(1, 1)))
    kind = _bytes(2, _bytes(1, _number(1, 1) + shape))
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"Identity")
    graph = _bytes(1, node) + _bytes(2, b"g")
    graph += _bytes(11, _bytes(1, b"x") + kind) + _bytes(12, _bytes(1, b"y") + kind)
    imports = b"".join(
        _bytes(8, _bytes(1, b"" if domain == "ai.onnx" else domain.encode()) + _number(2, version))
        for domain, version in opsets.items()
    )
    return _number(1, ir_version) + _bytes(7, graph) + imports


def reads(file: bytes) -> bool:
    """Whether the loader takes the versions; a kernel that is missing is another matter."""
    settings = ort.SessionOptions()
    settings.log_severity_level = NEVER_FATAL
    try:
        ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        return TOO_NEW.search(str(error)) is None
    return True


def limits() -> dict[str, object]:
    """The newest IR version, and the newest opset of each domain."""
    opsets = {}
    for domain in DOMAINS:
        tried = range(FIRST if domain == "ai.onnx" else 1, LAST)
        wanted = ({"ai.onnx": FIRST, domain: version} for version in tried)
        newest = max(o[domain] for o in wanted if reads(model(3, o)))
        if newest < LAST - 1:
            opsets[domain] = newest
    newest = max(v for v in range(3, LAST) if reads(model(v, {"ai.onnx": FIRST})))
    return {"onnxruntime": ort.__version__, "ir_version": newest, "opsets": opsets}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(limits()))
