"""Command-line flags made from an options record."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click
import msgspec

from tlexport import plugins

PLUGINS = {
    "task": ("tasks", ""),
    "target": ("targets", ""),
    "backbone": ("backbones", "/"),
    "backbones": ("backbones", "/"),
    "runtime": ("runtimes", "@"),
    "runtimes": ("runtimes", "@"),
    "reference": ("runtimes", "@"),
    "candidate": ("runtimes", "@"),
}
"""Flags whose values begin with the name of a plug-in: its folder, and what follows the name."""

SINGULAR = {
    "--batches": "--batch",
    "--preferred-batches": "--preferred-batch",
    "--concurrencies": "--concurrency",
}
"""Flags that may be repeated and whose one is not the many without its s."""

Command = TypeVar("Command", bound=Callable[..., Any])
Record = TypeVar("Record", bound=msgspec.Struct)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON alone.")
"""The flag every command has."""


def flags(record: type[msgspec.Struct], *, but: tuple[str, ...] = ()) -> Callable[[Command], Any]:
    """Add one flag per field of `record` (less `but`): name, type, default and help are its own."""

    def add(command: Command) -> Any:
        hints = _hints(record)
        for field in reversed(msgspec.structs.fields(record)):
            if field.name not in but:
                command = _flag(field.name, hints[field.name], field.default)(command)
        return command

    return add


@functools.cache
def _hints(record: type[msgspec.Struct]) -> dict[str, Any]:
    """Evaluated annotations: several commands have a record's flags, and this is what they cost."""
    return typing.get_type_hints(record, include_extras=True)


def record(kind: type[Record], values: dict[str, Any], **more: Any) -> Record:
    """Build the record from click's values; names it does not have are left alone."""
    fields = {field.name for field in msgspec.structs.fields(kind)}
    return kind(**{k: v for k, v in values.items() if k in fields}, **more)


def _names_of(place: tuple[str, str]) -> Callable[[Any, Any, str], list[str]]:
    """Shell completion from a plug-in folder, each name with what follows it."""
    folder, after = place

    def complete(context: Any, parameter: Any, incomplete: str) -> list[str]:
        found = (name + after for name in plugins.names(folder))
        return [name for name in found if name.startswith(incomplete)]

    return complete


def _flag(name: str, hint: Any, default: Any) -> Callable[[Any], Any]:
    kind, meta = typing.get_args(hint)[:2]
    completion = _names_of(PLUGINS[name]) if name in PLUGINS else None
    switch = "--" + name.replace("_", "-")
    if kind is bool:
        return click.option(switch, name, is_flag=True, default=default, help=meta.description)
    options: dict[str, Any] = {"default": default, "help": meta.description}
    options["shell_complete"] = completion
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        inner = typing.get_args(element)[0] if typing.get_args(element) else element
        switch = SINGULAR.get(switch, switch.removesuffix("s"))
        options |= {"multiple": True, "type": inner}
    elif typing.get_origin(kind) is Literal:
        options["type"] = click.Choice(typing.get_args(kind))
    elif typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        options["type"] = typing.get_args(inner)[0] if typing.get_args(inner) else inner
    else:
        options["type"] = kind
    if default not in (None, "", ()):
        options["show_default"] = True
    return click.option(switch, name, **options)
