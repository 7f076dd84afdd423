"""--module: the user's own network, and each way in which it cannot be served."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from importers import user_net

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, ExportError, OptionError, SpecError
from tlexport.stages.export import export
from tlexport.stages.verify import verify

NUMBERS = "numbers:float32[batch,4]=-1..1"
IDS = "ids:int64[batch,sequence<=30]"
X = "x:float32[batch,4]=-1..1"


@pytest.fixture(autouse=True)
def _here(user_code):
    """All of these work where the user's module lies."""


def test_several_inputs_and_outputs_go_through_the_stages(take, tmp_path):
    report = take(module="user_net:two", inputs=(NUMBERS, IDS))
    assert report.inputs == (
        "numbers:float32[batch,4]=-1..1",
        "ids:int64[batch,sequence]=0..19",  # read off the embedding
    )
    assert report.outputs == (
        "logits:float32[batch,3]",
        "value:float32[batch]",
        "tokens:float32[batch,sequence,8]",
    )
    assert "drop (Dropout)" in report.notes[0]
    bundle = Bundle(tmp_path / "b")
    golden = bundle.golden()
    assert golden.inputs["ids"].min() >= 0
    assert golden.inputs["ids"].max() <= 19
    assert np.abs(golden.inputs["numbers"]).max() <= 1
    export(bundle)
    parity = verify(bundle)
    assert parity.passed
    lengths = {c.check for c in parity.checks if c.check.startswith("sequence ")}
    assert len(lengths) >= 3
    assert not parity.flips


def test_outputs_are_chosen_or_renamed(take, tmp_path):
    take(module="user_net:two", inputs=(NUMBERS, IDS), output_names=("value", "logits"))
    bundle = Bundle(tmp_path / "b")
    assert [tensor.name for tensor in bundle.spec.outputs] == ["value", "logits"]
    assert (
        len(networks.network(bundle)(torch.zeros(1, 4), torch.zeros(1, 5, dtype=torch.int64))) == 2
    )
    take(module="user_net:two", inputs=(NUMBERS, IDS), output_names=("a", "b", "c"))
    assert [tensor.name for tensor in Bundle(tmp_path / "b").spec.outputs] == ["a", "b", "c"]
    with pytest.raises(OptionError, match="some of the outputs logits, value, tokens"):
        take(module="user_net:two", inputs=(NUMBERS, IDS), output_names=("a",))


def test_free_axes_and_nested_outputs_are_found(take):
    report = take(module="user_net:Segments", inputs=("x:float32[batch,3,height,width]=0..1",))
    assert report.outputs == (
        "map:float32[batch,3,height,width]",
        "parts_0:float32[batch]",
        "parts_1:float32[batch,3]",
    )


def test_inputs_may_be_called_otherwise_than_the_parameters(take):
    report = take(
        module="user_net:two", inputs=("a:float32[batch,4]=0..1", "b:int64[batch,n]=0..9")
    )
    assert report.inputs[0].startswith("a:")


def test_samples_tell_the_inputs_and_their_answers_are_held(take, tmp_path):
    network = user_net.Two().eval()
    rng = np.random.default_rng(0)
    arrays = {
        "numbers": rng.normal(size=(9, 4)).astype("f4"),
        "ids": rng.integers(0, 20, (9, 5)),
    }
    with torch.inference_mode():
        answers = network(*map(torch.from_numpy, arrays.values()))
    np.savez(tmp_path / "s.npz", **arrays, logits=answers["logits"].numpy())
    report = take(module="user_net:two", samples=str(tmp_path / "s.npz"), golden=4)
    assert report.inputs == ("numbers:float32[batch,4]", "ids:int64[batch,5]")
    assert report.samples == "4 from s.npz"
    assert "answers the samples as they are stored" in report.notes[-1]
    picked = Bundle(tmp_path / "b").golden().inputs["numbers"]
    np.testing.assert_array_equal(picked, arrays["numbers"][[0, 3, 5, 8]])
    np.savez(tmp_path / "s.npz", **arrays, logits=answers["logits"].numpy() * 1.01)
    with pytest.raises(DataError, match="as they are stored"):
        take(module="user_net:two", samples=str(tmp_path / "s.npz"))


def test_weights_are_loaded_all_of_them(take, tmp_path):
    torch.manual_seed(7)
    other = user_net.Two()
    torch.nn.init.normal_(other.head.weight)
    state = {f"model.{k}": v for k, v in other.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    take(module="user_net:two", inputs=(NUMBERS, IDS), weights=str(tmp_path / "w.safetensors"))
    built = networks.network(Bundle(tmp_path / "b"))
    assert torch.equal(built.module.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("head.bias"), "missing: head.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "not of this network: more"),
        (
            lambda s: s.update({"head.bias": torch.zeros(5)}),
            r"of another shape: head.bias \(5,\) for \(3,\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_name(take, tmp_path, change, told):
    state = user_net.Two().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError, match=told):
        take(module="user_net:two", inputs=(NUMBERS, IDS), weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "b").exists()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_a_pickle_is_not_run(take, tmp_path, monkeypatch):
    torch.save({"head.bias": Evil()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="could run code"):
        take(module="user_net:two", inputs=(NUMBERS, IDS), weights=str(tmp_path / "w.pth"))
    np.savez(tmp_path / "s.npz", numbers=np.array([Evil()], dtype=object))
    with pytest.raises(DataError, match="could run code"):
        take(module="user_net:two", inputs=(NUMBERS, IDS), samples=str(tmp_path / "s.npz"))
    assert not Path("pwned").exists()


REFUSED = [
    ("user_net", X, OptionError, "MODULE:FACTORY"),
    ("nowhere.net:make", X, OptionError, "no module called 'nowhere'"),
    ("user_net:nope", X, OptionError, "name one of: Two"),
    ("user_net:fails", X, OptionError, r"no such checkpoint \(user_net.py, line \d+: raise"),
    ("user_net:no_module", X, OptionError, "got: a int"),
    ("user_net:needs", X, OptionError, "called without arguments"),
    ("user_net:Longer", (), OptionError, r"forward\(x\).*\n.*--input 'x:float32"),
    ("user_net:two", NUMBERS, OptionError, "add --input 'ids:"),
    ("user_net:Longer", "x:float32[batch,n]", OptionError, "never drawn blindly"),
    ("user_net:Longer", "x:int64[batch,n]", OptionError, "never drawn blindly"),
    ("user_net:Viewing", X, SpecError, "view and reshape with -1"),
    ("user_net:Mean", X, SpecError, "a loss or a mean"),
    ("user_net:Text", X, SpecError, "got: str"),
    ("user_net:InPlace", X, SpecError, "leaves its inputs as they are"),
    ("user_net:SameName", X, OptionError, "x twice, or for an input too"),
    ("user_net:Half", X, SpecError, "bfloat16"),
    ("user_net:Broken", X, SpecError, r"user_net.py, line \d+: return x @ torch.zeros"),
    ("user_net:NotANumber", X, DataError, "NaN or infinity"),
    ("user_net:noisy", X, DataError, r"call to call, first in inner \(Noisy\)"),
    ("user_net:batch_norm", X, DataError, r"other rows, first in inner.norm \(BatchNorm2d\)"),
    ("user_net:one_row_norm", X, SpecError, "track_running_stats=True"),
    ("user_net:FixedLength", "x:float32[batch,7<=n]=0..1", OptionError, "answers at 7 only"),
]


@pytest.mark.parametrize(
    ("module", "inputs", "error", "told"), REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED]
)
def test_what_cannot_be_taken_in_is_told_with_what_to_change(take, module, inputs, error, told):
    with pytest.raises(error, match=told):
        take(module=module, inputs=(inputs,) if inputs else ())


@pytest.mark.parametrize(
    ("module", "inputs", "told"),
    [
        ("Branching", X, r"a Python branch on values \(user_net.py, line \d+: if x.abs\(\).max"),
        ("Counting", X, r"the constant 2 \(user_net.py, line \d+: rows = len\(x\)\)"),
        ("Longer", "x:float32[batch,n]=0..1", r"to 50 only \(user_net.py, line \d+: if x.shape"),
    ],
)
def test_what_cannot_be_traced_is_told_with_the_line(take, tmp_path, module, inputs, told):
    take(module=f"user_net:{module}", inputs=(inputs,))
    with pytest.raises(ExportError, match=told):
        export(tmp_path / "b")


def test_a_declared_bound_makes_a_branch_harmless(take, tmp_path):
    take(module="user_net:Longer", inputs=("x:float32[batch,n<=50]=0..1",))
    export(tmp_path / "b")
    assert verify(tmp_path / "b").passed


def test_a_model_that_answers_all_alike_is_noted(take):
    report = take(module="user_net:Constant", inputs=(X,))
    assert "output is the same for all 6 samples" in report.notes[-1]


def test_another_source_or_none_is_refused_when_the_network_is_built_again(
    take, tmp_path, monkeypatch
):
    here = tmp_path / "code"
    here.mkdir()
    shutil.copy("user_net.py", here / "their_net.py")
    monkeypatch.chdir(here)
    take(module="their_net:Constant", inputs=(X,))
    bundle = Bundle(tmp_path / "b")
    networks.network(bundle)
    (here / "their_net.py").write_text("raise SystemExit('this must not be run')\n")
    with pytest.raises(BundleError, match="another source"):
        networks.network(bundle)
    (here / "their_net.py").unlink()
    with pytest.raises(BundleError, match="no module of that name"):
        networks.network(bundle)
