from __future__ import annotations

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.standing import (
    PARAMETER,
    Standing,
    admit_next,
    admit_only,
    admitted,
    standing_of,
    tell,
)


def latest(count):
    found = pb.ModelConfig()
    found.version_policy.latest.num_versions = count
    return found


def every():
    found = pb.ModelConfig()
    found.version_policy.all.SetInParent()
    return found


def only(*numbers):
    found = pb.ModelConfig()
    admit_only(found, numbers)
    return found


@pytest.mark.parametrize(
    ("found", "left"),
    [
        (pb.ModelConfig(), [7]),
        (latest(2), [3, 7]),
        (latest(9), [1, 3, 7]),
        (every(), [1, 3, 7]),
        (only(3, 8), [3]),
        (only(), []),
    ],
)
def test_what_a_policy_leaves(found, left):
    assert admitted(found, [1, 3, 7]) == left


def test_what_is_told_is_read_again_less_what_is_gone():
    found = only(4)
    tell(found, Standing(served=(1, 2, 4), last=9))
    assert standing_of(found, [1, 2, 3, 4]) == Standing(served=(1, 2, 4), last=9)
    assert standing_of(found, [2, 3, 4, 11]) == Standing(served=(2, 4), last=11)


def test_the_policy_is_believed_before_the_parameter():
    found = only(2)
    tell(found, Standing(served=(1, 3), last=3))
    assert standing_of(found, [1, 2, 3]).served == (1, 2)
    tell(nobody := only(), Standing(served=(1, 3), last=3))
    assert standing_of(nobody, [1, 3]).served == (1, 3)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"served": ["x"]}'])
def test_without_a_parameter_all_up_to_the_one_admitted_have_served(text):
    found = only(3)
    if text:
        found.parameters[PARAMETER].string_value = text
    assert standing_of(found, [1, 3, 5]) == Standing(served=(1, 3), last=5)
    assert standing_of(only(), [1]) == Standing(served=(), last=1)
    assert standing_of(found, []).current is None


def test_then_again_and_after():
    stand = Standing(served=(1, 2, 4), last=4)
    assert stand.then(5) == Standing(served=(1, 2, 4, 5), last=5)
    assert stand.then(2) == Standing(served=(1, 2), last=4)
    assert Standing().then(1).current == 1


@pytest.mark.parametrize(
    ("keep", "until_it_is_there", "then"), [(1, [1], [4]), (2, [1], [1, 4]), (3, [1], [1, 4])]
)
def test_the_next_version_brings_back_none_that_was_rolled_back(keep, until_it_is_there, then):
    tell(before := only(1), Standing(served=(1,), last=3))
    admit_next(built := latest(keep), before, [1, 2, 3], 4)
    assert admitted(built, [1, 2, 3]) == until_it_is_there
    admit_next(again := latest(keep), built, [1, 2, 3, 4], 4)
    assert admitted(again, [1, 2, 3, 4]) == then
    assert standing_of(again, [1, 2, 3, 4]) == Standing(served=(1, 4), last=4)
    admit_next(later := latest(1), again, [1, 2, 3, 4], 5)
    assert later.version_policy.WhichOneof("policy_choice") == "latest"
    assert admitted(later, [1, 2, 3, 4, 5]) == [5]
