"""Where each field of a text protobuf stands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<word>[A-Za-z0-9_.+-]+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
OPENS = {"{": "}", "<": ">"}

Path = tuple[str | int, ...]
"""Names of fields; a number after a repeated one says which: ("input", 1, "dims")."""


class Field(msgspec.Struct):
    """One field as it is written: all of it, its value, and the fields of a message in it."""

    name: str
    start: int
    end: int
    value_start: int
    value_end: int
    fields: list[Field]


class Edit(msgspec.Struct, frozen=True):
    """Characters `start` to `end` of a file's text become `text`."""

    start: int
    end: int
    text: str


class Located:
    """A text protobuf that parses, and where its fields are."""

    def __init__(self, text: str) -> None:
        self.text = text
        tokens = [m for m in TOKEN.finditer(text) if m.lastgroup != "skip"]
        self.fields = _message(_Tokens(tokens), "")

    def all(self, path: Path) -> list[Field]:
        """Every occurrence of the last name of `path`, which may be left without a number."""
        found = [Field("", 0, len(self.text), 0, len(self.text), self.fields)]
        for step in path:
            if isinstance(step, int):
                found = found[step : step + 1]
            else:
                found = [field for each in found for field in each.fields if field.name == step]
        return found

    def line(self, path: Path) -> int | None:
        """Line of the field, or of the nearest around it that is written; None where none is."""
        for length in range(len(path), 0, -1):
            if found := self.all(path[:length]):
                return self.text.count("\n", 0, found[0].start) + 1
        return None

    def set(self, path: Path, value: str) -> tuple[Edit, ...]:
        """Edits that make the value of a field `value`, wherever and however often it stands."""
        found = self.all(path)
        if not found:
            return (self.add(path[:-1], f"{path[-1]}: {value}"),)
        edit = Edit(found[0].value_start, found[0].value_end, value)
        return (edit, *(Edit(field.start, field.end, "") for field in found[1:]))

    def add(self, path: Path, text: str) -> Edit:
        """The edit that adds a field to the message at `path`; () is the whole file."""
        if not path:
            end = len(self.text)
            return Edit(end, end, ("" if self.text[-1:] in ("", "\n") else "\n") + text + "\n")
        end = self.all(path)[0].value_end - 1
        return Edit(end, end, f"{'' if self.text[end - 1].isspace() else ' '}{text} ")


def applied(text: str, edits: list[Edit]) -> str:
    """The text with all edits made; of two at one place the later is left out."""
    end = len(text)
    for edit in sorted(set(edits), key=lambda edit: (edit.start, edit.end), reverse=True):
        if edit.end <= end:
            text = text[: edit.start] + edit.text + text[edit.end :]
            end = edit.start if edit.start != edit.end else end
    return text


class _Tokens:
    def __init__(self, tokens: list[re.Match[str]]) -> None:
        self._tokens, self._place = tokens, 0

    @property
    def next(self) -> str:
        """The coming token, "" at the end."""
        return self._tokens[self._place][0] if self._place < len(self._tokens) else ""

    def take(self) -> re.Match[str]:
        self._place += 1
        return self._tokens[self._place - 1]


def _message(tokens: _Tokens, closes: str) -> list[Field]:
    fields: list[Field] = []
    while tokens.next not in ("", closes):
        name = tokens.take()
        if tokens.next == ":":
            tokens.take()
        fields.extend(_values(tokens, name))
        while tokens.next in (",", ";"):
            tokens.take()
    return fields


def _values(tokens: _Tokens, name: re.Match[str]) -> Iterator[Field]:
    """One field, or one for each message of a list."""
    if tokens.next in OPENS:
        yield _one(tokens, name[0], name.start())
        return
    first = tokens.take()
    end = first.end()
    if first[0] == "[" and tokens.next in OPENS:
        start = name.start()
        while tokens.next in OPENS:
            found = _one(tokens, name[0], start)
            yield found
            if tokens.next == ",":
                tokens.take()
            start = tokens.take().start() if tokens.next == "]" else found.end
        return
    while first[0] == "[" and tokens.next not in ("", "]"):
        tokens.take()
    if first[0] == "[":
        end = tokens.take().end()
    while tokens.next[:1] in ('"', "'"):  # texts side by side are one
        end = tokens.take().end()
    yield Field(name[0], name.start(), end, first.start(), end, [])


def _one(tokens: _Tokens, name: str, start: int) -> Field:
    opening = tokens.take()
    fields = _message(tokens, OPENS[opening[0]])
    end = tokens.take().end()
    return Field(name, start, end, opening.start(), end, fields)
