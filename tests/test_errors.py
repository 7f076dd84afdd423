"""Each error has three parts and an exit code of its own."""

from __future__ import annotations

import re

import pytest

from tlexport import errors
from tlexport.errors import TlexportError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TlexportError)
]


def test_exit_codes_are_distinct_and_none_is_taken_for_success_or_a_usage_error_of_another_kind():
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert len(KINDS) >= 10
    assert len(set(codes.values())) == len(codes), codes
    assert 0 not in codes.values()
    assert codes["UnstableError"] == 4


def test_the_tree_on_top_of_the_module_is_the_tree():
    drawn = dict(re.findall(r"(\w+(?:Error|Dependency)) +(\d+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_what_was_expected_what_came_and_what_to_do(kind):
    error = kind("a cat", got="a dog", fix="call the cat")
    assert str(error) == "expected a cat\n  got: a dog\n  fix: call the cat"
    assert (error.expected, error.got, error.fix) == ("a cat", "a dog", "call the cat")


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_can_be_left_out(kind):
    with pytest.raises(TypeError):
        kind("a cat", got="a dog")
    with pytest.raises(TypeError):
        kind("a cat", fix="call the cat")
