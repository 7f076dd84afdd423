"""Rules of the ONNX file: whole, readable, its data beside it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import onnx

from tlexport.serving import releases
from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._graph import External, Graph
from tlexport.serving.lint._model import Model, Scope, inside

OLDEST_WITH_KERNELS = 7
MICROSOFT = "com.microsoft"
RUNTIMES_OWN = (MICROSOFT, "com.ms.", "ai.onnx.contrib", "ai.onnx.preview", "pkg.", "aten")
"""Beginnings of domains whose operators only ONNX Runtime itself could name."""


def file(model: Model, scope: Scope) -> Iterator[Finding]:
    """Whether it is an ONNX file at all."""
    for number, graph in model.graphs.items():
        if isinstance(graph, str):
            path = model.file(number)
            yield model.finding(
                "onnx-file",
                path,
                "a whole ONNX file",
                got=f"{path.stat().st_size} bytes: {graph}",
                fix="export it again, or copy it again: it was cut or is something else",
            )


def versions(model: Model, scope: Scope) -> Iterator[Finding]:
    """IR version and opsets against the release, or against the newest that is known."""
    newest = scope.triton or releases.releases()[-1]
    name = f"Triton {newest.triton}" if scope.triton else f"any Triton release to {newest.triton}"
    for number, graph in model.whole:
        path = model.file(number)
        able = releases.readers(graph.opsets, graph.ir_version)
        fix = f"export it again with --triton {newest.triton}"
        fix += f", or serve it with {able[0].triton} or newer" if able else ""
        if graph.ir_version > newest.max_ir_version:
            yield model.finding(
                "onnx-ir",
                path,
                f"IR version {newest.max_ir_version} or older, as {name} reads",
                got=f"IR version {graph.ir_version}",
                fix=fix,
            )
        for domain, (version, limit) in newest.too_new(graph.opsets).items():
            yield model.finding(
                "onnx-opset",
                path,
                f"opset {limit} or older of {domain}, as {name} reads",
                got=f"opset {version}",
                fix=fix,
            )
        if not graph.opsets:
            yield model.finding(
                "onnx-opset", path, "an opset_import", got="none", fix="export it again"
            )
        if 0 < graph.opsets.get("ai.onnx", OLDEST_WITH_KERNELS) < OLDEST_WITH_KERNELS:
            yield model.finding(
                "onnx-old-opset",
                path,
                f"opset {OLDEST_WITH_KERNELS} or newer: ONNX Runtime has kernels for these",
                got=f"opset {graph.opsets['ai.onnx']}",
                fix="convert it with onnx.version_converter",
            )


def operators(model: Model, scope: Scope) -> Iterator[Finding]:
    """Operators that no library can have: a slip, or of a newer opset than is imported."""
    for number, graph in model.whole:
        strange = sorted(_strange(graph))
        for domain, operator in strange[:5]:
            more = f", and {len(strange) - 5} more" if len(strange) > 5 else ""
            yield model.finding(
                "onnx-operator",
                model.file(number),
                f"operators of {domain} at opset {graph.opsets.get(domain, 'none')}",
                got=operator + more,
                fix=_hint(domain, operator),
            )


def microsoft(model: Model, scope: Scope) -> Iterator[Finding]:
    """Operators of com.microsoft, which has one version and grows with each ONNX Runtime."""
    for number, graph in model.whole:
        used = {name for domain, name in graph.operators - graph.functions if domain == MICROSOFT}
        for name in sorted(used):
            since = releases.microsoft_operators().get(name)
            if since is None:
                near = difflib.get_close_matches(name, releases.microsoft_operators(), 1)
                expected = f"an operator that {MICROSOFT} has"
                fix = f"there is {near[0]}" if near else "use an operator that there is"
            elif scope.triton and not scope.triton.has(since):
                able = [r.triton for r in releases.releases() if r.has(since)]
                expected = f"operators that Triton {scope.triton.triton} has, by its ONNX Runtime "
                expected += scope.triton.onnxruntime_version
                fix = "export it without that fusion"
                fix += f", or serve it with {able[0]} or newer" if able else ""
            else:
                continue
            got = f"{MICROSOFT}:{name}" + (f", which is of {since}" if since else "")
            yield model.finding("onnx-operator", model.file(number), expected, got=got, fix=fix)


def _strange(graph: Graph) -> Iterator[tuple[str, str]]:
    known = {schema.domain or "ai.onnx" for schema in onnx.defs.get_all_schemas()}
    newest = onnx.defs.onnx_opset_version()
    for domain, operator in graph.operators - graph.functions:
        if domain.startswith(RUNTIMES_OWN):
            continue
        version = graph.opsets.get(domain, 0)
        own = "" if domain == "ai.onnx" else domain
        absent = 0 < version <= newest and not onnx.defs.has(operator, version, own)
        if absent or domain not in known:
            yield domain, operator


def _hint(domain: str, operator: str) -> str:
    own = "" if domain == "ai.onnx" else domain
    since = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == own and schema.name == operator
    ]
    if since:
        return f"export it with an opset of {min(since)} or newer"
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == own}
    if not names:
        return "give the model functions for that domain, or op_library_filename for its library"
    near = difflib.get_close_matches(operator, names, 1)
    return f"there is {near[0]}" if near else "use an operator that there is"


def data(model: Model, scope: Scope) -> Iterator[Finding]:
    """External data: there, long enough, and nowhere but in the folder."""
    for number, graph in model.whole:
        path = model.file(number)
        seen: set[tuple[str, str]] = set()
        for external in graph.externals:
            for rule, expected, got, fix in _faults(model, path, external):
                if (rule, got) not in seen:
                    seen.add((rule, got))
                    yield model.finding(rule, path, expected, got=got, fix=fix)


def _faults(model: Model, path: Path, external: External) -> Iterator[tuple[str, str, str, str]]:
    """(rule, expected, got, fix) of what is wrong with where a weight lies."""
    location = external.told.get("location", "")
    own = f"a file in {path.parent.relative_to(model.folder)}"
    place = path.parent / location
    again = "save the model again with its data beside it"
    if not location or Path(location).is_absolute() or not inside(path.parent, place):
        got = f"{location!r}" + ("" if location else ": no name")
        if location and not Path(location).is_absolute():
            got += f", which is {str(place.resolve())!r}"
        yield "data-path", f"{own} as the data of the model", got, again
        return
    if not place.is_file():
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_file() and p != path)
        yield (
            "data-file",
            f"the model's data, {own} of the name {location!r}",
            f"no such file; there are {', '.join(beside)}" if beside else "no such file",
            f"copy {location} beside the model, by that very name",
        )
        return
    numbers = [external.told.get(key, "0") for key in ("offset", "length")]
    if not all(number.isdecimal() for number in numbers):
        yield "data-range", "an offset and a length of 0 or more", ", ".join(numbers), again
        return
    offset, length = map(int, numbers)
    if "length" in external.told and length != external.size_bytes:
        expected = f"{external.size_bytes} bytes of {external.name!r}"
        yield "data-range", expected, f"a length of {length}", again
    elif offset + external.size_bytes > place.stat().st_size:
        yield (
            "data-range",
            f"{location} of {offset + external.size_bytes} bytes or more",
            f"{place.stat().st_size} bytes",
            f"copy {location} again: it was cut",
        )


RULES = (file, versions, operators, microsoft, data)
