"""What was found when a version went live, or back."""

from __future__ import annotations

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why it was not done: the error's class and its three parts."""

    kind: str
    expected: str
    got: str
    fix: str


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Golden samples asked through the server, `batch` to a request.

    `asked` is "candidate" before clients see the version, "in service" after. `max_abs` and
    `allowed` are in the output's own unit; `flips` counts samples with another label.
    """

    asked: str
    batch: int
    samples: int
    output: str
    max_abs: float | None
    allowed: float
    flips: int
    passed: bool
    reason: str = ""


class DeployReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version went live. `served` serves now, `before` did; None: none.

    `pipeline` changed with the model, "" where it has none. `removed` are versions that went from
    the disk. Times are in seconds: of the candidates' load, and of the change to the new version.
    """

    repository: str
    server: str
    model: str
    version: int
    before: int | None
    served: int | None
    artifact: str
    artifact_sha256: str
    checks: tuple[GateCheck, ...]
    load_s: float | None
    change_s: float | None
    removed: tuple[int, ...]
    notes: tuple[str, ...]
    fault: Fault | None
    passed: bool
    pipeline: str = ""


class RollbackReport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model went back from version `before`; `served` serves now.

    `pipeline` went with the model, "" where it has none. `left` are older versions that it can
    still go back to, the next one last.
    """

    repository: str
    server: str
    model: str
    before: int
    version: int
    served: int | None
    artifact_sha256: str
    checks: tuple[GateCheck, ...]
    left: tuple[int, ...]
    notes: tuple[str, ...]
    fault: Fault | None
    passed: bool
    pipeline: str = ""
