"""Why an artifact answers otherwise: one file per target.

A file of this folder is called as its target and offers

    faults(bundle, artifact) -> list[Fault]                 what the file itself shows, before a run
    walk(bundle, artifact, question, limits) -> Walk        its graph against the original's
"""

from __future__ import annotations

import dataclasses

from tlexport.reports import Cause


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Something in a file that is not as the bundle has it.

    `deadly`: it is wrong even where no answer shows it, as a weight with one bit flipped.
    """

    cause: Cause
    deadly: bool = False
