"""A repository against a server's load rules, without one."""

from __future__ import annotations

import difflib
from pathlib import Path

from tlexport.environment import cores
from tlexport.errors import OptionError
from tlexport.files import text_of
from tlexport.options import LintOptions
from tlexport.progress import Progress, silent
from tlexport.reports import LintFinding, LintReport
from tlexport.serving import lint as rules
from tlexport.serving import remote, repository, store
from tlexport.serving.releases import release


def lint(
    place: Path | str = "model_repository",
    options: LintOptions | None = None,
    *,
    progress: Progress = silent,
) -> LintReport:
    """Hold every model of the repository at `place` against the rules; mend them if asked to.

    What --fix mended is not among the findings any more: they are what is left.

    Raises:
        RepositoryError: the folder is no repository, or what should be mended cannot be written.
        OptionError: an unknown release, or something to mend in an object store.
    """
    options = options or LintOptions()
    if options.fix and remote.url_of(place) is not None:
        raise OptionError(
            "a folder for --fix",
            got=f"{str(place)!r}",
            fix="mend a copy, or package the model again",
        )
    with store.readable(place) as folder:
        return _linted(str(place), folder, options, progress)


def _linted(shown: str, folder: Path, options: LintOptions, progress: Progress) -> LintReport:
    wanted = release(options.triton) if options.triton else None
    granted = options.cores or cores()
    progress("lint", 0, 1)
    found = rules.lint(folder, triton=wanted, cores=granted)
    changed = {}
    if options.fix and (before := rules.mend(found)):
        changed = {_below(folder, path): _lines(path, text) for path, text in before.items()}
        found = rules.lint(folder, triton=wanted, cores=granted)
    progress("lint", 1, 1)
    ordered = sorted(found, key=lambda each: (each.model, each.severity))
    return LintReport(
        repository=shown,
        triton=options.triton,
        models=tuple(repository.folders(folder)),
        findings=tuple(_told(folder, each) for each in ordered),
        errors=sum(each.severity == "error" for each in found),
        warnings=sum(each.severity == "warning" for each in found),
        changed=changed,
    )


def table() -> dict[str, tuple[str, str]]:
    """Every rule: name -> (how grave, what holds where it is kept)."""
    return dict(rules.RULES)


def _told(folder: Path, finding: rules.Finding) -> LintFinding:
    return LintFinding(
        rule=finding.rule,
        severity=finding.severity,
        model=finding.model,
        file=_below(folder, finding.path),
        line=finding.line,
        field=finding.field,
        expected=text_of(finding.expected),
        got=text_of(finding.got),
        fix=text_of(finding.fix),
        fixable=bool(finding.edits),
    )


def _below(folder: Path, path: Path) -> str:
    return text_of(path.relative_to(folder))


def _lines(path: Path, before: str) -> tuple[str, ...]:
    """The lines that were changed, "-" before and "+" after."""
    after = path.read_bytes().decode("utf-8", "surrogateescape")
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    shown = (line for line in lines if not line.startswith(("---", "+++", "@@")))
    return tuple(text_of(line) for line in shown)
