"""Which pre-trained networks can be loaded."""

from __future__ import annotations

import fnmatch

from tlexport import plugins
from tlexport.errors import TlexportError
from tlexport.reports import BackbonesReport


def list_backbones(pattern: str = "*") -> BackbonesReport:
    """List networks as SOURCE/NAME; `pattern` is a part of it, or a glob such as "timm/vit*"."""
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found: list[str] = []
    missing: list[str] = []
    for source in plugins.names("backbones"):
        try:
            names = plugins.load("backbones", source).names()
        except TlexportError as error:
            missing.append(f"{source}: {error.got}; {error.fix}")
            continue
        except Exception as error:  # one source that fails must not hide the others
            missing.append(f"{source}: {type(error).__name__}: {error}")
            continue
        found += [f"{source}/{name}" for name in names]
    matching = tuple(name for name in found if fnmatch.fnmatch(name.lower(), glob.lower()))
    return BackbonesReport(backbones=matching, missing=tuple(missing))
