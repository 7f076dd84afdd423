"""What holds a record of options against its own limits."""

from __future__ import annotations

import re
import typing

import msgspec

from tlexport.errors import OptionError


def check(record: msgspec.Struct) -> None:
    """Hold every field against its declared type and limits; tell all faults together.

    Raises:
        OptionError: naming each field, its limits and the value that came.
    """
    faults = []
    for name, kind in typing.get_type_hints(type(record), include_extras=True).items():
        value = getattr(record, name)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            faults.append((name, str(error), value))
        else:
            if value == float("inf"):
                faults.append((name, "Expected a finite number", value))
    if faults:
        raise OptionError(
            "; ".join(f"--{name.replace('_', '-')}: {text}" for name, text, _ in faults),
            got=", ".join(f"{name}={value!r}" for name, _, value in faults),
            fix="change these options",
        )


def check_name(name: str) -> None:
    """Refuse a model name that Triton's shell commands or folder scan would trip over.

    Raises:
        OptionError: the name is not made of A-Z a-z 0-9 _ . - or starts with a dot or dash.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise OptionError(
            "a model name of letters, digits, '_', '.' and '-'",
            got=repr(name),
            fix="pass --name with such a name: it becomes a folder, a URL and a shell argument",
        )
