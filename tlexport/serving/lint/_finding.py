"""A finding: which rule, where, and the edits that mend it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tlexport.serving.lint._rules import RULES
from tlexport.serving.lint._text import Edit


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that is broken.

    `edits` are changes to the text of `path`, safe to be made without asking: what they replace
    could not have been served, and there is but one thing it can have meant.
    """

    rule: str
    model: str
    path: Path
    line: int | None
    field: str
    expected: str
    got: str
    fix: str
    edits: tuple[Edit, ...] = ()

    @property
    def severity(self) -> str:
        """How grave: "error" or "warning"."""
        return RULES[self.rule][0]

    def mended(self, *edits: Edit) -> Finding:
        """The same with edits that mend it."""
        return msgspec.structs.replace(self, edits=edits)
