"""PACKAGE.MODULE:FACTORY: a network of the user's own code."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, place_of
from tlexport.files import sha256_of
from tlexport.importers import Bounds, Imported, _declared, _flat, _samples, _state
from tlexport.options import ImportOptions
from tlexport.spec import TensorSpec


def read(options: ImportOptions) -> Imported:
    """Call the factory, load the weights, and wrap the network.

    Raises:
        OptionError: there is no such module or factory, it fails, it returns something else, or
            its inputs are not declared and cannot be read off samples.
        DataError: the weights are not all of this network's.
    """
    text = str(options.module)
    name, colon, factory = text.partition(":")
    if not (colon and name and factory):
        raise OptionError(
            "--module PACKAGE.MODULE:FACTORY",
            got=repr(text),
            fix="name the module and, after a colon, a function in it that returns the network",
        )
    module = _import(name)
    network = _call(module, name, factory)
    notes = _notes(network)
    source = text
    if options.weights is not None:
        state, file = _state.read(options.weights)
        _state.load(network, state, file)
        source = f"{text}, weights {file}"
    else:
        notes.append(f"no --weights: the weights are those that {factory}() gives")
    inputs, bounds = _inputs(network, options)
    keywords = _flat.keywords_for(network, [tensor.name for tensor in inputs])
    return Imported(
        network=_flat.Flat(network.eval(), keywords).eval(),
        inputs=inputs,
        bounds=bounds,
        record={
            "importer": "module",
            "module": name,
            "factory": factory,
            "source_sha256": sha256_of(_file_of(module)),
            "keywords": list(keywords),
        },
        source=source,
        notes=tuple(notes),
    )


def network(bundle: Bundle) -> torch.nn.Module:
    """Import the module again, if it is the same still, and build the network.

    Raises:
        BundleError: the module is not importable here, its source is another, or the weights are
            not its network's.
    """
    record = bundle.manifest.network
    name, factory = str(record["module"]), str(record["factory"])
    expected = f"the module {name}, whose {factory}() built the network of {str(bundle.root)!r}"
    try:
        path = _found(name)
        if path is None or sha256_of(path) != record["source_sha256"]:
            raise BundleError(
                expected,
                got=f"another source in {str(path)!r}" if path else "no module of that name",
                fix="run from the folder where it was imported, with that source, or run `tlexport "
                "import` again",
            )
        built = _call(_import(name), name, factory)
    except OptionError as error:
        raise BundleError(expected, got=error.got, fix=error.fix) from error
    flat = _flat.Flat(built, record["keywords"], record["outputs"])
    return _state.restore(flat, bundle)


def _found(name: str) -> Path | None:
    """The module's file; the packages above it are imported, it is not."""
    with _from_here():
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
    path = Path(found.origin) if found is not None and found.origin else None
    return path if path is not None and path.is_file() else None


def _import(name: str) -> ModuleType:
    with _from_here():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name + ".").startswith(error.name + "."):
                raise OptionError(
                    f"{name} to import",
                    got=f"it imports {error.name!r}, which is not installed{place_of(error)}",
                    fix=f"pip install {error.name}, or mend the import",
                ) from error
            raise OptionError(
                f"a module {name!r} that Python can import",
                got=f"no module called {error.name!r} in {str(Path.cwd())!r} or installed",
                fix="run from the folder that holds it, or install its package",
            ) from error
        except Exception as error:  # whatever the user's module raises while it loads
            raise OptionError(
                f"{name} to import",
                got=f"{type(error).__name__}: {error}{place_of(error)}",
                fix="make `python -c 'import " + name + "'` work first",
            ) from error


def _file_of(module: ModuleType) -> Path:
    if module.__file__ is None:
        raise OptionError(
            "a module with a source file, which a bundle can be held against",
            got=f"{module.__name__}, a folder without __init__.py",
            fix="name the module below it that defines the factory",
        )
    return Path(module.__file__)


@contextlib.contextmanager
def _from_here() -> Iterator[None]:
    """Import from the working folder, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _call(module: ModuleType, name: str, factory: str) -> torch.nn.Module:
    made = getattr(module, factory, None)
    if not callable(made):
        there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise OptionError(
            f"a function {factory!r} in {name}",
            got="something that cannot be called" if made is not None else "none of that name",
            fix=f"name one of: {', '.join(there[:10]) or 'none there yet'}",
        )
    try:
        network = made()
    except Exception as error:  # whatever the user's factory raises
        raise OptionError(
            f"{name}:{factory}() to return a network, called without arguments",
            got=f"{type(error).__name__}: {error}{place_of(error)}",
            fix="write a function without parameters that returns the network as it was trained",
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise OptionError(
            f"a torch.nn.Module from {name}:{factory}()",
            got=f"a {type(network).__name__}",
            fix="return the network itself; wrap functions in a module",
        )
    return network


def _notes(network: torch.nn.Module) -> list[str]:
    """What differs between the network as it came and as it is asked."""
    matters = [
        f"{path} ({type(part).__name__})"
        for path, part in network.named_modules()
        if part.training
        and isinstance(
            part, (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)
        )
    ]
    if not matters:
        return []
    shown = ", ".join(matters[:3]) + (" ..." if len(matters) > 3 else "")
    return [f"the network came in training mode and was put into eval mode: {shown}"]


def _inputs(
    network: torch.nn.Module, options: ImportOptions
) -> tuple[tuple[TensorSpec, ...], Bounds]:
    """As declared; else as the samples show, where they are named as the network's parameters."""
    needed, known = _flat.parameters_of(network)
    if options.inputs:
        tensors, bounds = _declared.parse(options.inputs)
        if known and len(tensors) < len(needed):
            missing = [n for n in needed if n not in {tensor.name for tensor in tensors}]
            raise OptionError(
                f"the inputs that forward() takes: {', '.join(needed)}",
                got=f"{len(tensors)} declared: {', '.join(t.name for t in tensors)}",
                fix=f"add {_declared.asked_for(missing)}",
            )
        return tensors, bounds
    arrays: dict[str, np.ndarray] = {}
    if options.samples is not None and needed:
        arrays = _samples.arrays(Path(options.samples), needed[0] if len(needed) == 1 else None)
        if set(needed) <= set(arrays):
            return _flat.row_specs(arrays, needed), {}
    raise OptionError(
        "the inputs of the network, declared or in --samples by the names of its parameters",
        got=f"arrays {', '.join(arrays)} for forward({', '.join(needed)})"
        if arrays
        else f"neither for forward({', '.join(needed)})",
        fix=f"add {_declared.asked_for(needed or ['x'])} with its dtype and axes; names are free "
        "axes, numbers constant ones",
    )
