from __future__ import annotations

import pytest

from tlexport.serving import refusals

LOG = r"""I1124 08:42:25 1 model_lifecycle.cc:839] "successfully loaded 'twice'"
E1124 08:42:24 1 model_lifecycle.cc:642] "failed to load 'a' version 1: Internal: WHY\n\nAt:\n  x"
E1124 08:42:24 1 manager.cc:1] "Poll failed for model directory 'b': no such thing"
+-------+---------+
error: creating server: Internal - failed to load all models
"""


def test_each_refused_model_has_its_first_line():
    assert refusals.refused(LOG) == {"a": "Internal: WHY", "b": "no such thing"}
    assert refusals.reason(LOG).splitlines()[0] == "a: Internal: WHY"


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        ("Unsupported model IR version: 99, max supported IR version: 13", "--triton YY.MM"),
        ("Opset 99 is under development", "--triton YY.MM"),
        ("the first dimension must be -1; but shape", "max_batch_size: 0"),
        ("unable to open text file for labels.txt", "label file"),
        ("filesystem error: cannot get file size: No such file", "data file"),
        ("kind KIND_GPU but no GPUs are available", "KIND_CPU"),
        ("Protobuf parsing failed.", "export and package it again"),
        ("configuration expects 2 inputs, model provides 1", "config.pbtxt that matches"),
        ("something else", "read the log"),
    ],
)
def test_a_known_refusal_has_a_fix(why, fix):
    assert fix in refusals.fix_for(LOG.replace("WHY", why))


def test_other_ends():
    assert refusals.reason("x\nerror: creating server: bad flag\n") == "creating server: bad flag"
    assert refusals.reason("") == "it has said nothing"
    assert refusals.port_taken(
        "failed to start HTTP service: Unavailable - Socket '1' already in use"
    )
    assert not refusals.port_taken(LOG)
