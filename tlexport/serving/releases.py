"""Which Triton release reads which opsets and IR version."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tlexport import plugins

TABLE = Path(__file__).with_name("triton_releases.csv")

OPERATORS = Path(__file__).with_name("microsoft_operators.csv")
"""Measured by measure_release.py with wheels from 1.15.0 on: "1.15.0" is that or older."""

OTHERS = {
    **dict.fromkeys(("ai.onnx.preview", "ai.onnx.preview.training", "ai.onnx.training"), 1),
    **dict.fromkeys(("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc"), 1),
}
"""Newest version of the other domains that ONNX Runtime knows, in every release so far."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One monthly release: `triton` is YY.MM; the limits are those of its ONNX Runtime's loader."""

    triton: str
    server_version: str
    onnxruntime_version: str
    max_opset: int
    max_ir_version: int
    max_ml_opset: int

    def has(self, onnxruntime_version: str) -> bool:
        """Whether its ONNX Runtime is of that version or newer."""
        own, other = (
            tuple(map(int, version.split(".")))
            for version in (self.onnxruntime_version, onnxruntime_version)
        )
        return own >= other

    def reads(self, opsets: Mapping[str, int], ir_version: int) -> bool:
        """Whether its loader accepts a file of these opsets (domain -> version) and IR version."""
        return ir_version <= self.max_ir_version and not self.too_new(opsets)

    def too_new(self, opsets: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Domain -> (its version, the newest that is read), where the version is newer.

        A domain that is not ONNX's or Microsoft's own is somebody's: its version is never held
        against anything, only its operators must be there.
        """
        limits = {"": self.max_opset, "ai.onnx": self.max_opset, "ai.onnx.ml": self.max_ml_opset}
        limits |= OTHERS | {"com.ms.internal.nhwc": self.max_opset}
        return {
            domain: (version, limits[domain])
            for domain, version in opsets.items()
            if version > limits.get(domain, version)
        }


@functools.cache
def releases() -> tuple[Release, ...]:
    """Every known release, oldest first."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        rows = [
            Release(
                triton=row["triton_release"],
                server_version=row["server_version"],
                onnxruntime_version=row["onnxruntime_version"],
                max_opset=int(row["max_opset"]),
                max_ir_version=int(row["max_ir_version"]),
                max_ml_opset=int(row["max_ml_opset"]),
            )
            for row in csv.DictReader(stream)
        ]
    return tuple(sorted(rows, key=lambda release: release.triton))


@functools.cache
def microsoft_operators() -> dict[str, str]:
    """Operator of com.microsoft -> the oldest ONNX Runtime that was measured to have it."""
    with OPERATORS.open(newline="", encoding="utf-8") as stream:
        return {row["operator"]: row["onnxruntime_version"] for row in csv.DictReader(stream)}


def release(triton: str) -> Release:
    """The release written YY.MM, e.g. "24.10".

    Raises:
        OptionError: no such release is known; the message names the nearest.
    """
    for known in releases():
        if known.triton == triton:
            return known
    raise plugins.unknown("Triton release", triton, [r.triton for r in reversed(releases())])


def readers(opsets: Mapping[str, int], ir_version: int) -> tuple[Release, ...]:
    """The releases whose loader accepts these opsets and this IR version, oldest first."""
    return tuple(known for known in releases() if known.reads(opsets, ir_version))


def oldest_that_reads(opsets: Mapping[str, int], ir_version: int) -> Release | None:
    """The oldest release that accepts these opsets and this IR version, or None."""
    return next(iter(readers(opsets, ir_version)), None)
