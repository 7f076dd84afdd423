"""Whether a session runs where it was asked to, and why not.

Part of the Triton backend `onnxruntime` (see model.py beside it), and read by our own runtime as
well. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RECORD = "session.record_ep_graph_assignment_info"
"""Session setting that makes ONNX Runtime keep which provider has which node (1.24 and newer)."""

SIZES = frozenset(
    (
        *("Shape", "Size", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Range"),
        *(
            "Constant",
            "ConstantOfShape",
            "Identity",
            "Reshape",
            "Expand",
            "Tile",
            "Where",
            "NonZero",
        ),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max"),
        *("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "If", "Loop"),
    )
)
"""Operators that compute sizes. ONNX Runtime itself moves those of them whose result is a shape to
the CPU, where they cost less than a copy; the GPU providers have every one of them for a model's
values, so on the CPU they are that work and no fallback."""

DRIVER = "libcuda.so"


def strayed(session: Any, wanted: Sequence[str]) -> Counter[str] | None:
    """Operators, with their number, that are on none of `wanted` and compute no sizes.

    None where this ONNX Runtime cannot tell: it is too old, or did not record it.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name not in wanted:
            found.update(_named(node) for node in part.get_nodes())
    return Counter({name: count for name, count in found.items() if name not in SIZES})


def told(nodes: Counter[str], most: int = 8) -> str:
    """Operators as text, the most frequent first: "12 Attention, 1 NonMaxSuppression"."""
    names = [f"{count} {name}" for name, count in nodes.most_common(most)]
    return ", ".join(names) + (", ..." if len(nodes) > most else "")


def _named(node: Any) -> str:
    own = node.domain in ("", "ai.onnx")
    return str(node.op_type) if own else f"{node.domain}:{node.op_type}"


def why_not(library: Path, cuda: str, torch_cuda: str | None = None) -> str:
    """Why a provider's library is of no use here; ONNX Runtime itself only logs it.

    `cuda` is the version that this ONNX Runtime was built for, `torch_cuda` PyTorch's.
    """
    if not library.is_file():
        return f"this build of onnxruntime has no {library.name}"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error}{_hint(str(error), cuda, torch_cuda)}"
    return "its libraries load, but no such device is there"


def _hint(reason: str, cuda: str, torch_cuda: str | None) -> str:
    """What the missing library belongs to, and whether one of another major version is here."""
    match = re.match(r"(lib[\w-]+\.so)\.(\d+)", reason)
    if match is None:
        return ""
    name, major = match[1], match[2]
    if name == DRIVER:
        return " (the NVIDIA driver's own: there is none on this machine, or not in this container)"
    others = sorted(majors(name, search_folders()) - {major})
    said = f"; onnxruntime was built for CUDA {cuda}" if cuda else ""
    if others:
        said += f", and {name}.{', '.join(others)} is here, which is of another major version"
    if torch_cuda and cuda and torch_cuda.split(".")[0] != cuda.split(".")[0]:
        said += f"; PyTorch brought CUDA {torch_cuda}, which it cannot use"
    return said


def majors(name: str, folders: Iterable[Path]) -> set[str]:
    """Major versions of a library (libcublasLt.so) that lie in these folders."""
    found = (re.fullmatch(re.escape(name) + r"\.(\d+)(\.\d+)*", p.name) for p in _files(folders))
    return {match[1] for match in found if match}


def _files(folders: Iterable[Path]) -> Iterable[Path]:
    return (path for folder in folders if folder.is_dir() for path in folder.iterdir())


def search_folders() -> list[Path]:
    """Where CUDA's libraries are found: packages of pip, the loader's path, the toolkit's."""
    packages = [Path(place) for place in sys.path if place.endswith("-packages")]
    found = [folder for place in packages for folder in place.glob("nvidia/*/lib")]
    found += [place / "torch/lib" for place in packages]
    found += [Path(place) for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place]
    return found + list(Path("/usr/local").glob("cuda*/lib64"))
