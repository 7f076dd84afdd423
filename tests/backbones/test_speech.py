"""Speech networks answer what the library's do, alone or in a batch, in PyTorch and in ONNX."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import speech as voices
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_audio import SMALL
from torch.nn import functional
from torch.nn.utils import parametrize

from tlexport.backbones import _speech
from tlexport.backbones._mel_networks import Trim
from tlexport.backbones._spectrogram import KaldiSpectrogram, WhisperSpectrogram
from tlexport.errors import DataError, OptionError
from tlexport.preprocess import audio
from tlexport.tasks import _pooling

CONVOLUTIONS = {
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS = {
    "wav2vec2": transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS),
    "hubert": transformers.HubertConfig(**SMALL, **CONVOLUTIONS, **STABLE),
    "hubert-batch-norm": transformers.HubertConfig(
        **SMALL, **CONVOLUTIONS, conv_pos_batch_norm=True
    ),
    "wavlm": transformers.WavLMConfig(**SMALL, **CONVOLUTIONS),
    "wavlm-stable": transformers.WavLMConfig(**SMALL, **CONVOLUTIONS, **STABLE),
    "ast": transformers.ASTConfig(**SMALL, max_length=120),
    "whisper": transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        vocab_size=51,
        pad_token_id=50,
        max_source_positions=150,
    ),
}
WAVES = [name for name in CONFIGS if name not in ("ast", "whisper")]
RATE = 16_000


def built(name: str, **options) -> _speech.Speech:
    """A small network with random weights, none of them zero: fresh biases and positions are."""
    torch.manual_seed(0)
    network = _speech.build(CONFIGS[name], {}, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in network.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
    return network


def asked(network: torch.nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return network(*inputs)


def batch_of(clips: list[np.ndarray], more: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and mask of clips, and `more` columns of padding."""
    found = audio.batch(clips, {"mask": True})
    samples, mask = (torch.from_numpy(found[key]) for key in ("samples", "attention_mask"))
    return functional.pad(samples, (0, more)), functional.pad(mask, (0, more))


@pytest.fixture(scope="module")
def clips(spoken) -> list[np.ndarray]:
    """Five words by five voices, 0.45 to 0.9 s, and one cut to 0.05 s."""
    numbers = {"rate": RATE, "longest": 60 * RATE, "shortest": 400}
    names = ["yes/rms", "stop/slt", "left/awb", "go/en-us+m1", "no/en+f1"]
    found = [audio.load(spoken / f"{name}.wav", numbers) for name in names]
    return [*found, found[1][4000:4800]]


def theirs(name: str, network: _speech.Speech, clip: np.ndarray) -> torch.Tensor:
    """What transformers answers for a clip alone: its feature extractor, then its model."""
    kind = transformers.FEATURE_EXTRACTOR_MAPPING[type(CONFIGS[name])]
    options = {"max_length": 120} if name == "ast" else {"chunk_length": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AST's empty filters, numpy's arrays as tensors
        extractor = kind(**({} if name in WAVES else options))
        values = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[name]).eval()
    base = model.encoder if name == "whisper" else model
    state = network.network.state_dict()
    if name in WAVES:
        positions = base.encoder.pos_conv_embed.conv
        if parametrize.is_parametrized(positions):
            parametrize.remove_parametrizations(positions, "weight")
    base.load_state_dict(state)
    found = asked(base, next(iter(values.values())))
    return found.pooler_output[:, None] if name == "ast" else found.last_hidden_state


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clip_alone_gets_the_librarys_answer(name, clips):
    network = built(name, **({"trim_db": None} if name == "whisper" else {}))
    for clip in clips:
        hidden, valid = asked(network, torch.from_numpy(clip)[None])
        wanted = theirs(name, network, clip)
        assert hidden.dtype == torch.float32
        count = int(valid.sum())
        assert count == wanted.shape[1]
        assert valid[0, :count].all()
        assert wanted.abs().max() > 0.5
        assert (hidden[:, :count] - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_it_is_batched_with_and_padded_with_makes_no_difference(name, clips):
    network = built(name)
    clips = [*clips, clips[0][5000:5300]]  # shorter than a frame
    samples, mask = batch_of(clips, more=1777)
    if name == "whisper":
        together, valid = asked(network, samples)
    else:
        together, valid = asked(network, torch.where(mask, samples, float("nan")), mask)
    assert not together[~valid].any(), "zero where it is not valid"
    for row, clip in enumerate(clips):
        alone, own = asked(network, torch.from_numpy(clip)[None])
        count = int(own.sum())
        assert int(valid[row].sum()) == count
        difference = (together[row, :count] - alone[0, :count]).abs().max()
        assert difference < 2e-5 * alone.abs().max()


def test_the_librarys_own_padding_does_make_a_difference(clips):
    """Else the masks of the test above would prove nothing."""
    network = built("wav2vec2")
    samples, _ = batch_of(clips)
    padded = theirs("wav2vec2", network, samples[5].numpy())
    alone = theirs("wav2vec2", network, clips[5])
    assert (padded[:, : alone.shape[1]] - alone).abs().max() > 1e-2


@pytest.mark.parametrize("name", WAVES)
def test_frames_are_as_many_as_the_clip_alone_would_have(name):
    network = built(name)
    for length in (1, 399, 400, 719, 720, 800, 1039, 1040, 16_000):
        _, valid = asked(network, torch.randn(1, length) * 0.1)
        assert int(valid.sum()) == max(1, (length - 400) // 320 + 1), length


def test_a_row_of_padding_alone_hurts_nobody(clips):
    samples, mask = batch_of(clips[:2])
    mask[1] = False
    for name in ("wav2vec2", "wavlm", "ast"):
        hidden, valid = asked(built(name), samples, mask)
        assert hidden.isfinite().all()
        assert valid[:, 0].all()
    hidden, valid = asked(built("whisper"), samples * mask)
    assert hidden.isfinite().all()
    assert valid.sum(1).tolist()[1] == 1


class Answers(torch.nn.Module):
    """Hidden states, which of them are valid, and both poolings of them."""

    def __init__(self, network: _speech.Speech) -> None:
        super().__init__()
        self.network = network
        self.pools = torch.nn.ModuleList([_pooling.SegmentPool(5), _pooling.MeanPool()])

    def forward(self, samples, attention_mask=None):
        hidden, valid = self.network(samples, attention_mask)
        return hidden, valid, *(pool(hidden, valid) for pool in self.pools)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm", "ast", "whisper"])
def test_onnx_runtime_answers_the_same_at_any_batch_and_length(name, clips):
    options = {"window": 16_000} if name == "whisper" else {}
    answers = Answers(built(name, **options)).eval()
    masked = _speech.numbers(CONFIGS[name], {})["mask"]
    model = exported(answers, batch_of(clips[:2])[: 1 + masked])
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Loop", "If", "NonZero", "ScatterND", "STFT", "DFT"}
    assert all(output.type.tensor_type.shape.dim[0].dim_param for output in model.graph.output)
    assert 18 <= max(entry.version for entry in model.opset_import if not entry.domain) <= 20
    run = onnxruntime.InferenceSession(model.SerializeToString())
    long = np.concatenate(clips * 3)
    noise = (0.1 * np.random.default_rng(0).standard_normal(40_001)).astype(np.float32)
    for group in ([clips[5]], [long], [noise[:1600]], clips[::-1], [noise, clips[0], noise[:801]]):
        inputs = batch_of(group)[: 1 + masked]
        wanted = asked(answers, *inputs)
        names = [value.name for value in run.get_inputs()]
        found = run.run(None, dict(zip(names, (value.numpy() for value in inputs), strict=True)))
        for ours, right in zip(found, (value.numpy() for value in wanted), strict=True):
            assert (ours.shape, ours.dtype) == (right.shape, right.dtype)
            scale = max(1.0, float(np.abs(right).max()))
            assert np.abs(ours.astype(float) - right).max() < 1e-5 * scale


def exported(module: torch.nn.Module, samples: tuple[torch.Tensor, ...]):
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module,
            samples,
            dynamo=True,
            verbose=False,
            dynamic_shapes=tuple(dict(axes) for _ in samples),
        ).model_proto


@pytest.mark.parametrize("window", [3, 30])
def test_whispers_spectrogram_is_the_librarys(window, clips):
    extractor = transformers.WhisperFeatureExtractor(chunk_length=window)
    ours = WhisperSpectrogram(80, window * RATE)
    for clip in (*clips, np.concatenate(clips * 2), np.zeros(500, np.float32)):
        shape = np.zeros(window * RATE, np.float32)
        shape[: clip.size] = clip[: shape.size]
        wanted = extractor._np_extract_fbank_features([shape], "cpu")[0]
        found = ours(torch.from_numpy(clip)[None])[0].numpy()
        assert found.shape == wanted.shape == (80, 100 * window)
        assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize(("normalise", "frames"), [(True, 1024), (True, 50), (False, 120)])
def test_asts_spectrogram_is_the_librarys(normalise, frames, clips):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = transformers.ASTFeatureExtractor(max_length=frames, do_normalize=normalise)
    statistics = (extractor.mean, extractor.std) if normalise else None
    ours = KaldiSpectrogram(128, frames, statistics)
    for clip in (*clips, np.concatenate(clips), np.zeros(500, np.float32)):
        wanted = extractor(clip, sampling_rate=RATE, return_tensors="np").input_values[0]
        samples = torch.nn.functional.pad(torch.from_numpy(clip), (0, 2345))[None]
        found = ours(samples, torch.tensor([clip.size]))[0].numpy()
        assert found.shape == wanted.shape == (frames, 128)
        assert np.abs(found - wanted).max() < (1e-4 if normalise else 1e-3)


def test_silence_at_both_ends_is_trimmed(clips):
    rng = np.random.default_rng(0)
    trim = Trim(RATE, 35.0)
    word = clips[3][: 320 * 15]  # an espeak voice begins at once
    hush = 1e-4 * rng.standard_normal(RATE).astype(np.float32)
    around = np.concatenate([hush[: 320 * 12], word, hush[: 320 * 20]])
    cut, count = asked(trim, *(torch.from_numpy(around)[None],))
    loudness = np.square(word).reshape(-1, 320).mean(1)
    loud = np.flatnonzero(loudness > loudness.max() * 10**-3.5)
    assert count.tolist() == [loud[-1] + 1]
    assert np.array_equal(cut[0, : 320 * (loud[-1] + 1)], word[: 320 * (loud[-1] + 1)])
    assert not cut[0, 320 * (loud[-1] + 1) :].any()


def test_what_is_longer_than_the_window_is_cut_from_its_first_sound():
    clip = torch.zeros(1, 3 * RATE)
    clip[0, 320 * 50 :] = torch.linspace(0.1, 0.2, 3 * RATE - 320 * 50)
    cut, count = asked(Trim(RATE, 35.0), clip)
    assert count.tolist() == [50]
    assert torch.equal(cut[0], clip[0, 320 * 50 : 320 * 50 + RATE])


def test_of_a_clip_of_zeros_one_frame_is_left():
    for length in (1, 400, 50_000):
        _, count = asked(Trim(RATE, 35.0), torch.zeros(2, length))
        assert count.tolist() == [1, 1]


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_segments_are_those_of_adaptive_pooling_over_the_valid_frames(segments):
    hidden = torch.randn(12, 12, 3)
    valid = torch.arange(12) < torch.arange(1, 13)[:, None]
    found = asked(_pooling.SegmentPool(segments), torch.where(valid[..., None], hidden, 1e9), valid)
    for row in range(12):
        part = hidden[row : row + 1, : row + 1].transpose(1, 2)
        wanted = functional.adaptive_avg_pool1d(part, segments).transpose(1, 2).flatten(1)
        assert torch.allclose(found[row], wanted[0], atol=1e-6)
    if segments == 1:
        assert torch.equal(asked(_pooling.MeanPool(), hidden, valid), found)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_is_built_again_from_its_state(name, clips):
    network, again = built(name), _speech.build(CONFIGS[name], {})
    again.load_state_dict(network.state_dict(), strict=True)
    samples, mask = batch_of(clips[:2])
    assert torch.equal(asked(again, samples, mask)[0], asked(network, samples, mask)[0])
    assert not network.training


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wav2vec2", transformers.Wav2Vec2ForCTC),
        ("hubert", transformers.HubertForSequenceClassification),
        ("wavlm", transformers.WavLMModel),
        ("ast", transformers.ASTForAudioClassification),
        ("whisper", transformers.WhisperForConditionalGeneration),
    ],
)
def test_checkpoints_with_any_head_are_read(name, kind, clips, tmp_path, capfd):
    torch.manual_seed(1)
    config = copy.deepcopy(CONFIGS[name])
    whole = kind(config).half()
    whole.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state = {key: value for key, value in state.items() if "masked_spec_embed" not in key}
    capfd.readouterr()
    network = _speech.wrap(_speech.load(CONFIGS[name], state), {})
    assert capfd.readouterr() == ("", "")
    base = whole.float().get_encoder() if name == "whisper" else whole.float().base_model
    right = _speech.wrap(base, {})
    samples, mask = batch_of(clips[:2])
    assert torch.equal(asked(network, samples, mask)[0], asked(right, samples, mask)[0])
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    lost = (
        next(key for key in state if "encoder" in key and key.endswith("fc1.weight"))
        if (name == "whisper")
        else next(key for key in state if "dense.weight" in key or "k_proj.weight" in key)
    )
    with pytest.raises(DataError, match="without"):
        _speech.load(CONFIGS[name], {k: v for k, v in state.items() if k != lost})
    with pytest.raises(DataError, match="another shape"):
        _speech.load(CONFIGS[name], state | {lost: state[lost][:, :-1].contiguous()})


def test_the_numbers_of_each_family():
    base = transformers.Wav2Vec2Config()
    common = {"rate": RATE, "shortest": 400}
    assert _speech.numbers(base, {}) == common | {"longest": 60 * RATE, "mask": True}
    slow = _speech.numbers(base, {"sampling_rate": 8_000})
    assert (slow["rate"], slow["longest"]) == (8_000, 60 * 8_000)
    found = _speech.numbers(transformers.WhisperConfig(), {})
    assert found == common | {"longest": 30 * RATE, "mask": False}
    found = _speech.numbers(transformers.ASTConfig(), {})
    assert found == common | {"longest": 1023 * 160 + 400, "mask": True}


def test_what_does_not_suit_is_refused():
    with pytest.raises(OptionError, match="a speech network"):
        _speech.build(transformers.BertConfig(), {})
    with pytest.raises(OptionError, match="8000 Hz"):
        _speech.build(CONFIGS["ast"], {"sampling_rate": 8_000})
    for window, fix in ((47_999, 48_000), (0, 320), (48_320, 48_000), (-5, 320)):
        with pytest.raises(OptionError, match=f"pass {fix}$"):
            _speech.build(CONFIGS["whisper"], {}, window)


def test_normalisation_is_as_the_extractor_says(clips):
    loud = torch.from_numpy(clips[0])[None]
    for normalise in (True, False):
        torch.manual_seed(0)
        network = _speech.build(CONFIGS["hubert"], {"do_normalize": normalise})
        hidden, _ = asked(network, loud)
        quiet, _ = asked(network, loud / 8)
        assert ((hidden - quiet).abs().max() < 1e-2) == normalise


@pytest.fixture(scope="module")
def tiny(whisper_folder) -> tuple[transformers.PretrainedConfig, dict[str, torch.Tensor], dict]:
    config = transformers.AutoConfig.from_pretrained(whisper_folder)
    state = safetensors.torch.load_file(whisper_folder / "model.safetensors")
    return config, state, json.loads((whisper_folder / "preprocessor_config.json").read_text())


def test_whisper_tiny_answers_as_the_library_does(tiny, clips):
    config, state, extractor = tiny
    with torch.inference_mode():
        encoder = _speech.load(config, state)
        values = transformers.WhisperFeatureExtractor(**extractor)(
            clips[0], sampling_rate=RATE, return_tensors="pt"
        )
        wanted = encoder(values.input_features).last_hidden_state
        found, valid = _speech.wrap(encoder, extractor, trim_db=None)(
            torch.from_numpy(clips[0])[None]
        )
    assert found.shape == (1, 1500, 384)
    assert valid.all()
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("segments", [1, 5])
def test_whisper_tiny_knows_ten_words_by_voices_it_never_heard(segments, tiny, spoken, request):
    features, truth, speaker = request.getfixturevalue("heard")
    pooled = features[segments]
    taught = np.isin(speaker, voices.ESPEAK[:4])
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    head.fit(pooled[taught], truth[taught])
    unheard = np.isin(speaker, voices.ESPEAK[4:])
    other = np.isin(speaker, voices.FLITE)
    assert (taught.sum(), unheard.sum(), other.sum()) == (40, 80, 40)
    assert head.score(pooled[unheard], truth[unheard]) >= 0.93
    assert head.score(pooled[other], truth[other]) >= 0.88


@pytest.fixture(scope="module")
def heard(tiny, spoken) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Features of every word by segments, the words, the voices; 3 s of Whisper's window."""
    config, state, extractor = tiny
    numbers = _speech.numbers(config, extractor)
    network = _speech.wrap(_speech.load(config, state), extractor, 3 * RATE)
    files: list[Path] = sorted(spoken.glob("*/*.wav"))
    pools = {segments: _pooling.SegmentPool(segments) for segments in (1, 5)}
    rows: dict[int, list[np.ndarray]] = {segments: [] for segments in pools}
    for start in range(0, len(files), 16):
        group = [audio.load(file, numbers) for file in files[start : start + 16]]
        samples = torch.from_numpy(audio.batch(group, numbers)["samples"])
        hidden, valid = asked(network, samples)
        for segments, pool in pools.items():
            rows[segments].append(asked(pool, hidden, valid).numpy())
    features = {segments: np.concatenate(parts) for segments, parts in rows.items()}
    words = np.array([file.parent.name for file in files])
    return features, words, np.array([file.stem for file in files])
