"""A folder is its own registry: names in it, one of them."""

from __future__ import annotations

import importlib
import keyword
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tlexport.errors import MissingDependency, OptionError

ROOT = Path(__file__).parent


def names(folder: str) -> list[str]:
    """The plug-ins of `tlexport/<folder>/`, listed without importing any."""
    found = (module.name for module in pkgutil.iter_modules([str(ROOT / folder)]))
    return sorted(n.rstrip("_").replace("_", "-") for n in found if not n.startswith("_"))


def module_of(folder: str, name: str) -> str:
    """The module of a plug-in; one that is called as a word of Python's has a `_` at its end."""
    file = name.replace("-", "_") + ("_" if keyword.iskeyword(name) else "")
    return f"tlexport.{folder}.{file}"


def load(folder: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `tlexport/<folder>/`.

    Raises:
        OptionError: no such plug-in; the message lists those there are.
        MissingDependency: its library is not installed, or does not load.
    """
    known = names(folder)
    if name not in known:
        raise unknown(folder.rstrip("s"), name, known)
    try:
        return importlib.import_module(module_of(folder, name))
    except Exception as error:  # libraries raise anything while they load
        library = error.name if isinstance(error, ImportError) else None
        if library is not None and library.split(".")[0] == "tlexport":
            raise
        if isinstance(error, ModuleNotFoundError):
            raise MissingDependency(
                f"the library {library!r} for {folder}/{name}",
                got="it is not installed",
                fix=f"pip install {library}",
            ) from error
        raise MissingDependency(
            f"{folder}/{name} to load",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            fix="install or update the library that it needs",
        ) from error


def unknown(kind: str, name: str, known: Sequence[str]) -> OptionError:
    """The error for a name that is not there, with the nearest one that is."""
    import difflib  # a millisecond, and only for a mistake

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return OptionError(
        f"a {kind} of: {shown}",
        got=f"no {kind} called {name!r}",
        fix=f"did you mean {near[0]!r}?" if near else "use one of the listed names",
    )
