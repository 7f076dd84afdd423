"""Command-line flags made from an options record."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

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


class Several:
    """One flag per field of a record, made when a command is asked for them."""

    def __init__(self, record: type[msgspec.Struct], but: tuple[str, ...]) -> None:
        self._record = record
        self._but = but

    def made(self) -> list[click.Parameter]:
        """Each flag's name, type, default and help are the field's own."""
        hints = _hints(self._record)
        return [
            _flag(field.name, hints[field.name], field.default)
            for field in msgspec.structs.fields(self._record)
            if field.name not in self._but
        ]


class Flagged(click.Command):
    """A command whose flags are made when it is run or asked for help, not when all are listed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The flags of every record in place."""
        found: list[click.Parameter] = []
        for each in cast(list[click.Parameter | Several], self.params):
            found += each.made() if isinstance(each, Several) else [each]
        self.params = found
        return super().get_params(ctx)


def flags(record: type[msgspec.Struct], *, but: tuple[str, ...] = ()) -> Callable[[Command], Any]:
    """Add one flag per field of `record` (less `but`) to a command of class `Flagged`."""

    def add(command: Command) -> Any:
        # As click's own decorators do it: from the last to the first, turned round by the command.
        vars(command).setdefault("__click_params__", []).append(Several(record, but))
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


def _flag(name: str, hint: Any, default: Any) -> click.Option:
    kind, meta = typing.get_args(hint)[:2]
    completion = _names_of(PLUGINS[name]) if name in PLUGINS else None
    switch = "--" + name.replace("_", "-")
    if kind is bool:
        return click.Option([switch, name], is_flag=True, default=default, help=meta.description)
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
    return click.Option([switch, name], **options)
