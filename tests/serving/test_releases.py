from __future__ import annotations

import itertools

import pytest

from tlexport.errors import OptionError
from tlexport.serving.releases import oldest_that_reads, readers, release, releases


def test_table_is_in_order_and_limits_never_fall():
    table = releases()
    assert [r.triton for r in table] == sorted({r.triton for r in table})
    for older, newer in itertools.pairwise(table):
        assert older.max_opset <= newer.max_opset
        assert older.max_ir_version <= newer.max_ir_version


@pytest.mark.parametrize(
    ("opset", "ir_version", "oldest"),
    [(18, 10, "24.05"), (18, 8, "23.03"), (23, 11, "25.08"), (20, 13, "26.02"), (99, 8, None)],
)
def test_oldest_release_that_reads_a_file(opset, ir_version, oldest):
    found = oldest_that_reads(opset, ir_version)
    assert (found.triton if found else None) == oldest
    assert [r.triton for r in readers(opset, ir_version)[:1]] == ([oldest] if oldest else [])


def test_unknown_release_names_the_nearest():
    assert release("24.10").server_version == "2.51.0"
    with pytest.raises(OptionError, match=r"did you mean '24.12'"):
        release("24.13")
