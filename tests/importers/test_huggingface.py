"""--huggingface: folders of save_pretrained, tiny and with random weights."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.importers import _hub_folder, _sequences
from tlexport.stages.export import export
from tlexport.stages.predict import predict
from tlexport.stages.verify import verify

NAMES = {0: "bad", 1: "so so", 2: "good"}
LABELS = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
PIXELS = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.5, 0.25],
}


@pytest.fixture(autouse=True)
def _silent():
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def lively(model):
    """Weights that tell inputs apart; the library's own are nearly zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def vit(folder: Path, **config) -> transformers.PreTrainedModel:
    settings = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = lively(
        transformers.ViTForImageClassification(transformers.ViTConfig(**settings, **config))
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return model


def bert(folder: Path, kind="SequenceClassification", **config):
    model = lively(
        getattr(transformers, f"BertFor{kind}")(transformers.BertConfig(**SMALL, **config))
    )
    model.save_pretrained(folder)
    vocabulary = {f"w{number}": number for number in range(50)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w1"))
    words.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w1", pad_token="w0", model_max_length=100
    )
    fast.save_pretrained(folder)
    return model


def test_an_image_classifier_brings_labels_and_preprocessing(take, tmp_path):
    model = vit(tmp_path / "vit", **LABELS)
    report = take(huggingface=str(tmp_path / "vit"))
    assert (report.task, report.labels) == ("image-classification", ("bad", "so so", "good"))
    assert report.inputs == ("images:uint8[batch,32,32,3]=0..255",)
    (tmp_path / "vit").rename(tmp_path / "gone")
    bundle = Bundle(tmp_path / "b")
    images = bundle.golden().inputs["images"]
    processor = transformers.ViTImageProcessor(**PIXELS)
    raw = [Image.open(bundle.raw(sample)) for sample in bundle.manifest.golden]
    values = processor(raw, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        wanted = model(values).logits
        found = networks.network(bundle)(torch.from_numpy(images))
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)  # pixels are rounded to uint8
    told = predict(tmp_path / "b", [bundle.raw(sample) for sample in bundle.manifest.golden])
    assert {p.labels[0] for p in told.predictions} <= set(NAMES.values())
    assert not any(p.error for p in told.predictions)


def test_samples_may_be_a_folder_of_images(take, tmp_path, digits):
    vit(tmp_path / "vit", **LABELS)
    report = take(huggingface=str(tmp_path / "vit"), samples=str(digits / "3"))
    assert report.samples == "6 of 30 files"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no image")
    with pytest.raises(DataError, match="1 broken of 1"):
        take(huggingface=str(tmp_path / "vit"), samples=str(tmp_path / "text"))


def test_a_text_classifier_brings_labels_and_tokenizer(take, tmp_path):
    bert(tmp_path / "bert", **LABELS)
    report = take(huggingface=str(tmp_path / "bert"))
    assert report.labels == ("bad", "so so", "good")
    assert report.inputs == (
        "input_ids:int64[batch,sequence]=0..49",
        "attention_mask:int64[batch,sequence]=0..1",
    )
    bundle = Bundle(tmp_path / "b")
    assert bundle.spec.task == "text-classification"
    told = predict(tmp_path / "b", [bundle.raw(sample) for sample in bundle.manifest.golden])
    assert {p.labels[0] for p in told.predictions} <= set(NAMES.values())
    assert list(bundle.files()) == ["tokenizer.json"]
    assert bundle.spec.preprocess["max_length"] == 40
    assert bundle.spec.preprocess["padding_side"] == "right"
    assert bundle.spec.preprocess["tokenizer_sha256"] == bundle.manifest.files["tokenizer.json"]


@pytest.mark.parametrize(
    ("kind", "config", "outputs", "note"),
    [
        ("TokenClassification", LABELS, ("logits:float32[batch,sequence,3]",), ""),
        ("SequenceClassification", {"num_labels": 1}, ("logits:float32[batch,1]",), "regression"),
        (
            "SequenceClassification",
            {"problem_type": "multi_label_classification", **LABELS},
            ("logits:float32[batch,3]",),
            "no softmax",
        ),
        ("MaskedLM", {}, ("logits:float32[batch,sequence,50]",), ""),
    ],
)
def test_whatever_is_no_classification_has_no_labels(take, tmp_path, kind, config, outputs, note):
    bert(tmp_path / "bert", kind, **config)
    report = take(huggingface=str(tmp_path / "bert"))
    assert (report.task, report.labels, report.outputs) == ("tensors", (), outputs)
    assert note in " ".join(report.notes)


DECODERS = {
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=50,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=40,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **LABELS,
        )
    ),
    "llama": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=0, **LABELS)
    ),
}


def test_an_encoder_answers_alike_wherever_the_padding_is(tmp_path):
    model = bert(tmp_path / "bert", **LABELS)
    wrapped = _sequences.classifier(model)
    ids = torch.randint(1, 50, (3, 6))
    ones, zeros = torch.ones(3, 6, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
    with torch.inference_mode():
        wanted = model(ids).logits
        for padded, mask in (((ids, zeros), (ones, zeros)), ((zeros, ids), (zeros, ones))):
            found = wrapped(torch.cat(padded, 1), torch.cat(mask, 1))
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_pools_the_last_real_token_wherever_the_padding_is(name):
    model = lively(DECODERS[name]())
    wrapped = _sequences.classifier(model)
    ids = torch.randint(1, 50, (3, 6))
    ones, zeros = torch.ones(3, 6, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
    with torch.inference_mode():
        wanted = torch.cat([model(ids[row : row + 1]).logits for row in range(3)])
        for padded, mask in (
            ((ids,), (ones,)),
            ((ids, zeros), (ones, zeros)),
            ((zeros, ids), (zeros, ones)),
            ((zeros + 7, ids), (zeros, ones)),  # padding is what the mask says, not an id
        ):
            found = wrapped(torch.cat(padded, 1), torch.cat(mask, 1))
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_decoder_goes_through_the_stages_without_argmax(take, tmp_path):
    import onnx

    lively(DECODERS["gpt2"]()).save_pretrained(tmp_path / "gpt2")
    take(huggingface=str(tmp_path / "gpt2"))
    bundle = Bundle(tmp_path / "b")
    export(bundle)
    assert verify(bundle).passed
    file = bundle.artifact_file(bundle.artifact("onnx-fp32"))
    assert not {"ArgMax", "ScatterND"} & {node.op_type for node in onnx.load(file).graph.node}


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_a_tokenizer_ids_are_taken(take, tmp_path):
    bert(tmp_path / "bert", **LABELS)
    for path in (tmp_path / "bert").glob("tokenizer*"):
        path.unlink()
    report = take(huggingface=str(tmp_path / "bert"))
    assert (report.task, report.labels) == ("tensors", ("bad", "so so", "good"))
    assert "token ids are taken, not texts" in report.notes[0]


def test_code_in_the_folder_is_not_run_unasked(take, tmp_path):
    folder = tmp_path / "own"
    bert(folder, **LABELS)
    mark = tmp_path / "ran"
    (folder / "theirs.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from transformers import BertForSequenceClassification\n"
        "class Theirs(BertForSequenceClassification):\n    pass\n"
    )
    edit(
        folder / "config.json",
        auto_map={"AutoModelForSequenceClassification": "theirs.Theirs"},
        architectures=["Theirs"],
    )
    with pytest.raises(OptionError, match=r"theirs\.Theirs.*\n.*--trust-remote-code"):
        take(huggingface=str(folder))
    assert not mark.exists()
    take(huggingface=str(folder), trust_remote_code=True)
    assert mark.exists()
    networks.network(Bundle(tmp_path / "b"))
    with (folder / "theirs.py").open("a") as file:
        file.write("raise SystemExit('changed since')\n")
    with pytest.raises(BundleError, match="not what was trusted"):
        networks.network(Bundle(tmp_path / "b"))


def test_pickled_weights_are_refused(take, tmp_path):
    model = bert(tmp_path / "bert", **LABELS)
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights"):
        take(huggingface=str(tmp_path / "bert"))
    torch.save(model.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(DataError, match="unpickling") as caught:
        take(huggingface=str(tmp_path / "bert"))
    assert "save_pretrained" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"architectures": ["NoSuchModel"]}, OptionError, "NoSuchModel"),
        ({"architectures": ["AutoTokenizer"]}, OptionError, "AutoTokenizer"),
        ({"architectures": ["BertForTokenClassification"]}, DataError, "missing: classifier"),
        ({"architectures": ["BertModel"], "hidden_size": 24}, DataError, "BertModel"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(take, tmp_path, changes, error, told):
    bert(tmp_path / "bert", "MaskedLM")
    edit(tmp_path / "bert" / "config.json", **changes)
    with pytest.raises(error, match=told):
        take(huggingface=str(tmp_path / "bert"))


def test_no_folder_and_no_preprocessing(take, tmp_path):
    with pytest.raises(OptionError, match=r"no config\.json"):
        take(huggingface="bert-base-uncased")
    vit(tmp_path / "vit", **LABELS)
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        take(huggingface=str(tmp_path / "vit"))


def test_a_waveform_model_asks_for_its_input(take, tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **LABELS,
    )
    model = lively(transformers.Wav2Vec2ForSequenceClassification(config))
    model.save_pretrained(tmp_path / "w")
    with pytest.raises(OptionError, match="--input 'input_values:float32"):
        take(huggingface=str(tmp_path / "w"))
    report = take(
        huggingface=str(tmp_path / "w"), inputs=("input_values:float32[batch,samples<=800]=-3..3",)
    )
    assert report.labels == ("bad", "so so", "good")
    export(tmp_path / "b")
    assert verify(tmp_path / "b").passed


WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
SPEECH = {
    "Wav2Vec2ForSequenceClassification": transformers.Wav2Vec2Config(**WAVE, **LABELS),
    "HubertForSequenceClassification": transformers.HubertConfig(**WAVE, **LABELS),
    "ASTForAudioClassification": transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=128,
        **LABELS,
    ),
    "WhisperForAudioClassification": transformers.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        max_source_positions=100,
        classifier_proj_size=8,
        **LABELS,
    ),
}
EXTRACTORS = {
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2FeatureExtractor", {"do_normalize": True}),
    "HubertForSequenceClassification": ("Wav2Vec2FeatureExtractor", {"do_normalize": True}),
    "ASTForAudioClassification": ("ASTFeatureExtractor", {"max_length": 128}),
    "WhisperForAudioClassification": ("WhisperFeatureExtractor", {"chunk_length": 2}),
}


@pytest.mark.parametrize("name", SPEECH)
def test_a_speech_classifier_takes_raw_samples_and_answers_as_the_library_does(
    name: str, take, tmp_path
):
    torch.manual_seed(0)
    model = getattr(transformers, name)(SPEECH[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.eval().save_pretrained(tmp_path / "w")
    kind, numbers = EXTRACTORS[name]
    with warnings.catch_warnings():  # of empty mel filters
        warnings.simplefilter("ignore")
        extractor = getattr(transformers, kind)(**numbers)
    extractor.save_pretrained(tmp_path / "w")
    report = take(huggingface=str(tmp_path / "w"), golden=4)
    assert report.labels == ("bad", "so so", "good")
    bundle = Bundle(tmp_path / "b")
    assert bundle.spec.task == "audio-classification"
    golden = bundle.golden()
    for row in range(2):
        clip = golden.inputs["samples"][row]
        if "attention_mask" in golden.inputs:
            clip = clip[golden.inputs["attention_mask"][row]]
        asked = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            want = model(**{k: v for k, v in asked.items() if k != "attention_mask"}).logits[0]
        got = golden.outputs["logits"][row]
        scale = float(want.abs().max())
        assert np.abs(got - want.numpy()).max() <= 1e-3 * scale
    export(tmp_path / "b")
    assert verify(tmp_path / "b").passed
    raw = bundle.raw(golden.samples[0])
    assert predict(tmp_path / "b", [raw]).predictions[0].labels


@pytest.mark.parametrize(
    ("told", "size", "resize", "mode"),
    [
        ({"size": 16}, [16, 16], [16, 16], "squash"),
        (
            {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16},
            [16, 16],
            [20, 20],
            "shortest",
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, [224, 224], [256, 256], "shortest"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, [384, 384], [384, 384], "squash"),
    ],
)
def test_geometries_of_image_processors(tmp_path, told, size, resize, mode):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = _hub_folder.pixels(tmp_path)
    assert (found["size"], found["resize"], found["mode"]) == (size, resize, mode)


def test_scales_of_image_processors(tmp_path):
    """x * rescale_factor, less the mean, by the deviation: folded into those of values in 0 .. 1"""
    told = {"size": 8, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [2.0] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = _hub_folder.pixels(tmp_path)
    for pixel in (0, 100, 255):
        assert (pixel / 127.5 - 1) / 2 == pytest.approx(
            (pixel / 255 - found["mean"][0]) / found["std"][0]
        )


@pytest.mark.parametrize(
    "told", [{"do_resize": False}, {"size": {"longest_edge": 8}}, {"size": 8, "image_mean": [0.5]}]
)
def test_preprocessing_that_cannot_be_taken_along_is_refused(tmp_path, told):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="preprocessing to one size"):
        _hub_folder.pixels(tmp_path)


def test_texts_are_drawn_out_of_the_vocabulary():
    pieces = {"[PAD]": 0, "##ing": 1, "hello": 2, "▁world": 3}
    for vocabulary in (pieces, [[piece, 0.0] for piece in pieces]):
        files = {"tokenizer.json": json.dumps({"model": {"vocab": vocabulary}}).encode()}
        found = [
            raw.content.decode() for raw in _hub_folder.texts(files, 9, np.random.default_rng(0))
        ]
        assert len(set(found)) == 9
        assert {w for text in found for w in text.split()[:-1]} <= {"ing", "hello", "world"}
