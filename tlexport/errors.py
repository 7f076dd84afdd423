"""Every error this package raises, and its exit code.

TlexportError                1
├── OptionError              2   a request that cannot be met as asked
├── ParityError              3   two runtimes do not answer alike
├── UnstableError            4   a measurement that did not settle
├── DataError                5   the user's examples
├── BundleError              6   the folder that travels
├── ExportError              7   the model cannot become the target
├── RepositoryError          8   the Triton model repository
├── ServerError              9   a server that is not there or answers no
├── MissingDependency       10   a library or program that is not installed
├── SpecError               11   tensors that are not what was declared
└── RegressionError         12   slower than an earlier measurement by more than is allowed
"""

from __future__ import annotations

import itertools
import sysconfig
import traceback
from pathlib import Path
from typing import Any


class TlexportError(Exception):
    """An error in three parts: what was expected, what came, what to do."""

    exit_code = 1

    def __init__(self, expected: str, *, got: str, fix: str) -> None:
        super().__init__(expected, got, fix)
        self.expected = expected
        self.got = got
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels from one process to another."""
        return _anew, (type(self), (self.expected, self.got, self.fix))

    def __str__(self) -> str:
        return f"expected {self.expected}\n  got: {self.got}\n  fix: {self.fix}"


class OptionError(TlexportError):
    """A request that cannot be met as asked."""

    exit_code = 2


class ParityError(TlexportError):
    """Two runtimes do not answer alike."""

    exit_code = 3


class UnstableError(TlexportError):
    """A measurement did not settle: its numbers may not be what is usual."""

    exit_code = 4


class DataError(TlexportError):
    """The user's examples are not usable as they are."""

    exit_code = 5


class BundleError(TlexportError):
    """The bundle is missing, damaged, stale or in the way."""

    exit_code = 6


class ExportError(TlexportError):
    """The model cannot become what was asked."""

    exit_code = 7


class RepositoryError(TlexportError):
    """The Triton model repository cannot take or serve the model."""

    exit_code = 8


class ServerError(TlexportError):
    """A server does not start, is not reachable, or answers with a refusal."""

    exit_code = 9


class MissingDependency(TlexportError):
    """A library or program that is needed is not installed."""

    exit_code = 10


class SpecError(TlexportError):
    """Tensors are not what the model declares."""

    exit_code = 11


class RegressionError(TlexportError):
    """Slower than an earlier measurement by more than is allowed."""

    exit_code = 12


def _anew(kind: type[TlexportError], parts: tuple[str, str, str]) -> TlexportError:
    return kind(parts[0], got=parts[1], fix=parts[2])


def place_of(error: BaseException | None = None) -> str:
    """Where in the user's own code it happened, as " (net.py, line 12: ...)"; "" if nowhere.

    Without an error: what is being run now.
    """
    libraries = (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], "<")
    ours = str(Path(__file__).parent)
    stack = traceback.extract_tb(error.__traceback__) if error else traceback.extract_stack()
    inner = itertools.dropwhile(lambda frame: frame.filename.startswith(ours), reversed(stack))
    for frame in inner:
        if frame.filename.startswith(ours):  # further out is who called us
            return ""
        if not frame.filename.startswith(libraries):
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""
