"""A server's load rules, without a server.

Each file holds the rules of one matter as small functions over a `Model`, a folder that was read
once: `_folders`, `_onnx`, `_tensors`, `_labels`, `_settings`, `_sequences`, `_warmups`,
`_ensembles`. `_rules` names them all. They were found by asking: every rule stands in the tests
beside a repository that the real server refuses for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tlexport.errors import RepositoryError
from tlexport.files import write_atomic
from tlexport.serving import repository
from tlexport.serving.lint import (
    _ensembles,
    _folders,
    _labels,
    _onnx,
    _sequences,
    _settings,
    _tensors,
    _warmups,
)
from tlexport.serving.lint._finding import Finding as Finding
from tlexport.serving.lint._model import Model, Scope
from tlexport.serving.lint._rules import RULES as RULES
from tlexport.serving.lint._text import Edit, applied
from tlexport.serving.releases import Release

ROOMS = (_folders, _onnx, _tensors, _labels, _settings, _sequences, _warmups, _ensembles)


def lint(
    place: Path, *, only: str = "", triton: Release | None = None, cores: int = 1
) -> list[Finding]:
    """What is wrong with a repository, model by model; `only` is the name of one.

    Raises:
        RepositoryError: the folder is no repository at all, or cannot be read.
    """
    try:
        models = {name: Model(place / name) for name in repository.folders(place)}
        scope = Scope(models=models, triton=triton, cores=cores)
        chosen = [model for model in models.values() if only in ("", model.name)]
        return [finding for model in chosen for finding in _findings(model, scope)]
    except OSError as error:
        raise RepositoryError(
            f"to read the repository {str(place)!r}",
            got=f"{error.strerror or error}: {error.filename}",
            fix="make its files readable for you: the server must read them, too",
        ) from error


def _findings(model: Model, scope: Scope) -> Iterable[Finding]:
    if model.fault:
        return list(_folders.text(model, scope))
    return [found for room in ROOMS for rule in room.RULES for found in rule(model, scope)]


def mend(findings: Iterable[Finding]) -> dict[Path, str]:
    """Make every safe edit, each file at one stroke; the files, and what each was before.

    The first that was there is kept beside it as FILE.orig.
    """
    by_file: dict[Path, list[Edit]] = {}
    for finding in findings:
        by_file.setdefault(finding.path, []).extend(finding.edits)
    before = {}
    for path, edits in by_file.items():
        if edits:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
            kept = path.with_name(f"{path.name}.orig")
            if not kept.exists():
                write_atomic(kept, path.read_bytes())
            write_atomic(path, applied(text, edits).encode("utf-8", "surrogateescape"))
            before[path] = text
    return before
