"""Which pre-trained networks can be loaded."""

from __future__ import annotations

import fnmatch

from tlexport import plugins
from tlexport.errors import MissingDependency
from tlexport.reports import BackbonesReport


def list_backbones(pattern: str = "*") -> BackbonesReport:
    """List networks as SOURCE/NAME; `pattern` is a part of it, or a glob such as "timm/vit*"."""
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found: list[str] = []
    missing: list[str] = []
    for source in plugins.names("backbones"):
        try:
            module = plugins.load("backbones", source)
        except MissingDependency as error:
            missing.append(f"{source}: {error.fix}")
            continue
        found += [f"{source}/{name}" for name in module.names()]
    matching = tuple(name for name in found if fnmatch.fnmatch(name.lower(), glob.lower()))
    return BackbonesReport(backbones=matching, missing=tuple(missing))
