"""Which Triton release reads which opset and IR version."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import msgspec

from tlexport import plugins

TABLE = Path(__file__).with_name("triton_releases.csv")


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One monthly release: `triton` is YY.MM; the limits are those of its ONNX Runtime's loader."""

    triton: str
    server_version: str
    onnxruntime_version: str
    max_opset: int
    max_ir_version: int

    def reads(self, opset: int, ir_version: int) -> bool:
        """Whether its loader accepts an ONNX file of this opset and IR version."""
        return opset <= self.max_opset and ir_version <= self.max_ir_version


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
            )
            for row in csv.DictReader(stream)
        ]
    return tuple(sorted(rows, key=lambda release: release.triton))


def release(triton: str) -> Release:
    """The release written YY.MM, e.g. "24.10".

    Raises:
        OptionError: no such release is known; the message names the nearest.
    """
    for known in releases():
        if known.triton == triton:
            return known
    raise plugins.unknown("Triton release", triton, [r.triton for r in reversed(releases())])


def readers(opset: int, ir_version: int) -> tuple[Release, ...]:
    """The releases whose loader accepts this opset and IR version, oldest first."""
    return tuple(known for known in releases() if known.reads(opset, ir_version))


def oldest_that_reads(opset: int, ir_version: int) -> Release | None:
    """The oldest release that accepts this opset and IR version, or None where none does."""
    return next(iter(readers(opset, ir_version)), None)
