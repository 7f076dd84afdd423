"""What answers: anything that turns arrays into arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import OptionError
from tlexport.options import RuntimeOptions
from tlexport.spec import ModelSpec, Tensors


class Runtime(Protocol):
    """A file of this folder offers `open(bundle, where, options) -> Runtime`.

    A runtime may be called from several threads at once.
    """

    name: str
    spec: ModelSpec

    def __call__(self, inputs: Tensors) -> Tensors:
        """Answer: rows in, rows out, in order."""

    def facts(self) -> Mapping[str, Any]:
        """What it runs on: library version, provider, threads, digest of the file."""

    def counters(self) -> Mapping[str, float]:
        """A server's own totals: `requests`, `queue_ms`, `compute_ms`; empty in process."""

    def close(self) -> None:
        """Give everything back."""


def reference_of(bundle: Bundle) -> str:
    """The runtime that is right about a bundle, where the caller names none.

    The original in PyTorch; of an imported file the answers that came with its samples, else the
    file itself with ONNX Runtime's optimisations off.
    """
    if bundle.manifest.original:
        return "eager@cpu"
    return "golden@bundle" if bundle.manifest.answered_by == "samples" else "ort@cpu-plain"


def yardstick_of(bundle: Bundle) -> str:
    """The runtime that others are timed against, where the caller names none."""
    return "eager@cpu" if bundle.manifest.original else "ort@cpu-plain"


def connect(name: str, bundle: Bundle | None, options: RuntimeOptions) -> Runtime:
    """Open the runtime that is written NAME@WHERE, e.g. "ort@cpu" or "triton@localhost:8001".

    Raises:
        OptionError: the text is not of this form, or there is no such runtime.
        MissingDependency: the runtime's library is not installed.
    """
    kind, at, where = name.partition("@")
    if not (kind and at and where):
        raise OptionError(
            "a runtime written NAME@WHERE, such as ort@cpu or triton@localhost:8001",
            got=repr(name),
            fix=f"use one of: {', '.join(plugins.names('runtimes'))}, then '@' and a device or "
            "address",
        )
    return cast(Runtime, plugins.load("runtimes", kind).open(bundle, where, options))
