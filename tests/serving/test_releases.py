from __future__ import annotations

import itertools

import pytest

from tlexport.errors import OptionError
from tlexport.serving.releases import (
    microsoft_operators,
    oldest_that_reads,
    readers,
    release,
    releases,
)


def test_table_is_in_order_and_limits_never_fall():
    table = releases()
    assert [r.triton for r in table] == sorted({r.triton for r in table})
    for older, newer in itertools.pairwise(table):
        assert older.max_opset <= newer.max_opset
        assert older.max_ir_version <= newer.max_ir_version
        assert older.max_ml_opset <= newer.max_ml_opset


@pytest.mark.parametrize(
    ("opset", "ir_version", "oldest"),
    [(18, 10, "24.05"), (18, 8, "23.03"), (23, 11, "25.08"), (20, 13, "26.02"), (99, 8, None)],
)
def test_oldest_release_that_reads_a_file(opset, ir_version, oldest):
    opsets = {"ai.onnx": opset}
    found = oldest_that_reads(opsets, ir_version)
    assert (found.triton if found else None) == oldest
    assert [r.triton for r in readers(opsets, ir_version)[:1]] == ([oldest] if oldest else [])


@pytest.mark.parametrize(
    ("domain", "version", "oldest"),
    [
        ("ai.onnx.ml", 3, "22.09"),
        ("ai.onnx.ml", 4, "24.03"),
        ("ai.onnx.ml", 5, "24.05"),
        ("ai.onnx.ml", 9, None),
        ("com.microsoft", 1, "22.09"),
        ("com.microsoft", 2, None),
        ("com.ms.internal.nhwc", 19, "23.05"),
        ("ai.onnx.preview.training", 1, "22.09"),
        ("somebodys.own", 99, "22.09"),
    ],
)
def test_every_domain_counts(domain, version, oldest):
    found = oldest_that_reads({"ai.onnx": 17, domain: version}, 8)
    assert (found.triton if found else None) == oldest


def test_a_domain_that_is_too_new_is_named_with_its_limit():
    opsets = {"ai.onnx": 18, "ai.onnx.ml": 5}
    assert release("24.03").too_new(opsets) == {"ai.onnx.ml": (5, 4)}
    assert not release("24.03").reads(opsets, 9)


def test_unknown_release_names_the_nearest():
    assert release("24.10").server_version == "2.51.0"
    with pytest.raises(OptionError, match=r"did you mean '24.12'"):
        release("24.13")


@pytest.mark.parametrize(
    ("operator", "triton", "has"),
    [
        ("Gelu", "23.05", True),
        ("MatMulNBits", "23.10", False),
        ("MatMulNBits", "23.11", True),
        ("PagedAttention", "25.07", False),
        ("PagedAttention", "25.08", True),
    ],
)
def test_operators_of_microsoft_by_release(operator, triton, has):
    assert release(triton).has(microsoft_operators()[operator]) == has
