"""NAME:DTYPE[AXES]=LOW..HIGH: what can be written, and what is answered to the rest."""

from __future__ import annotations

import pytest

from tlexport.errors import OptionError
from tlexport.importers import _declared
from tlexport.spec import TensorSpec


@pytest.mark.parametrize(
    ("text", "shape", "legal", "bounds"),
    [
        ("x:float32[batch,3,224,224]", ("batch", 3, 224, 224), None, {}),
        ("x:float32[batch, 4]=-1..1", ("batch", 4), (-1, 1), {}),
        ("x:float32[batch]=1e-3..2.5", ("batch",), (0.001, 2.5), {}),
        ("x:int64[batch,sequence<=512]=0..30521", ("batch", "sequence"), (0, 30521), (1, 512)),
        ("x:int64[batch,2<=sequence<=5]=0..3", ("batch", "sequence"), (0, 3), (2, 5)),
        ("x:uint8[batch,8]", ("batch", 8), (0, 255), {}),
        ("x:float32[1,8]", (1, 8), None, {}),
    ],
)
def test_what_is_written_is_what_is_meant(text, shape, legal, bounds):
    (tensor,), found = _declared.parse([text])
    assert (tensor.name, tensor.shape, tensor.legal) == ("x", shape, legal)
    assert found.get("sequence", {}) == bounds


def test_bounds_of_an_axis_are_joined():
    _, bounds = _declared.parse(["a:int64[batch,n<=9]=0..1", "b:int64[batch,3<=n<=20]=0..1"])
    assert bounds["n"] == (3, 9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x", "NAME:DTYPE[AXES]"),
        ("x:float32", "NAME:DTYPE[AXES]"),
        ("x:float[batch]", "float is float32"),
        ("x:object[batch]", "'object'"),
        ("x:float32[3,224]", "'batch' as the first axis"),
        ("x:float32[]", "'batch' as the first axis"),
        ("x:float32[batch,-1]", "'-1'"),
        ("x:float32[batch,0]", "'0'"),
        ("x:float32[batch,n<=0]", "sizes that an axis n can have"),
        ("x:float32[batch,5<=n<=2]", "sizes that an axis n can have"),
        ("x:float32[batch]=1..0", "LOW..HIGH"),
        ("x:float32[batch]=nan..1", "LOW..HIGH"),
        ("x:float32[batch]=0..inf", "LOW..HIGH"),
        ("x:float32[batch]=a..b", "LOW..HIGH"),
        ("x:float32[batch]=3", "NAME:DTYPE[AXES]"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, told):
    with pytest.raises(OptionError) as caught:
        _declared.parse([text])
    assert told in str(caught.value)


def test_a_name_comes_once():
    with pytest.raises(OptionError, match="each input once"):
        _declared.parse(["x:float32[batch]=0..1", "x:float32[batch]=0..1"])


FOUND = (TensorSpec(name="x", dtype="float32", shape=("batch", "x_1", 3)),)


def test_a_file_is_completed_by_what_is_declared():
    (tensor,) = _declared.merged(FOUND, ["x:float32[batch,time,3]=0..1"])
    assert tensor.shape == ("batch", "time", 3)
    assert tensor.legal == (0, 1)
    assert _declared.merged(FOUND, []) == FOUND


@pytest.mark.parametrize(
    "text",
    ["y:float32[batch,4,3]", "x:float64[batch,t,3]", "x:float32[batch,t,4]", "x:float32[batch,t]"],
)
def test_a_file_is_not_overruled(text):
    with pytest.raises(OptionError):
        _declared.merged(FOUND, [text])


def test_what_is_printed_can_be_pasted():
    tensor = TensorSpec(name="x", dtype="int64", shape=("batch", "n"), legal=(0, 5))
    assert _declared.parse([_declared.written(tensor)])[0] == (tensor,)
