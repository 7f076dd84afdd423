"""Speech networks of the library, made to look alike.

Whatever stands behind it, a `Speech` takes raw samples and gives a row of numbers per frame:

    samples         float32 [batch, samples], -1 .. 1, at the rate that `numbers` names
    attention_mask  bool [batch, samples], true before the padding on the right; None: no padding
    -> hidden       float32 [batch, frames, width], zero where it is not valid
       valid        bool [batch, frames], true for at least the first

What a clip gets does not depend on what it is batched with, nor on how far it is padded.

wav2vec2, HuBERT, WavLM  a frame each 20 ms, as many as the clip alone would have
Whisper's encoder        a frame each 20 ms; silence is trimmed off both ends of the clip, what is
                         longer than a fixed window is cut, zeros fill the rest
AST                      one frame: its summary of a fixed window, which its own classifier reads;
                         clips are cut, or the spectrogram is filled up, as the library does
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tlexport.backbones import _hub
from tlexport.backbones._mel_networks import TRIM_DB, Ast, Whisper
from tlexport.backbones._mel_networks import WHISPER_STEP as WHISPER_STEP
from tlexport.backbones._spectrogram import FRAME, HOP, RATE
from tlexport.backbones._speech_network import Speech as Speech
from tlexport.backbones._waves import Waves, receptive_field
from tlexport.errors import DataError, OptionError

WAVES = ("wav2vec2", "hubert", "wavlm")
KINDS = (*WAVES, "whisper", "audio-spectrogram-transformer")
LONGEST_S = 60
"""Seconds of a clip that networks without a window are given: attention grows with the square."""

AUDIOSET = (-4.2677393, 4.5689974)
"""Mean and deviation that `ASTFeatureExtractor` takes where its file names none."""


def build(
    config: PretrainedConfig,
    extractor: dict[str, Any],
    window: int | None = None,
    trim_db: float | None = TRIM_DB,
) -> Speech:
    """The network of a configuration, with random weights, in eval mode.

    `extractor` is what `preprocessor_config.json` says. The other two are Whisper's: `window` the
    samples that its encoder sees (None: all it has positions for), `trim_db` how far below its
    loudest 20 ms a clip begins and ends (None: nothing is trimmed).

    Raises:
        OptionError: it is no speech network of these, or the window or rate do not suit it.
    """
    numbers(config, extractor)
    return wrap(_class_of(config)(copy.deepcopy(config)), extractor, window, trim_db)


def wrap(
    network: PreTrainedModel,
    extractor: dict[str, Any],
    window: int | None = None,
    trim_db: float | None = TRIM_DB,
) -> Speech:
    """The same around a network that has its weights already; it is changed in place."""
    if isinstance(network, WhisperModel):
        network = network.encoder
    config = network.config
    numbers(config, extractor)
    normalise = extractor.get("do_normalize", True)
    if config.model_type == "whisper":
        speech: Speech = Whisper(network, window=_window(config, window), trim_db=trim_db)
    elif config.model_type in WAVES:
        speech = Waves(network, normalise=normalise)
    else:
        mean, deviation = AUDIOSET
        statistics = extractor.get("mean", mean), extractor.get("std", deviation)
        speech = Ast(network, statistics=statistics if normalise else None)
    return speech.eval()


def load(config: PretrainedConfig, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The library's network with the weights of a checkpoint, whatever head that has; for `wrap`.

    The library itself reads it, since older files name the same weights otherwise.

    Raises:
        DataError: a weight is not there, or of another shape.
    """
    kind = _class_of(config)
    if config.model_type == "whisper":  # the checkpoint holds a decoder too
        known = next((key for key in state if key.endswith("conv1.weight")), "conv1.weight")
        prefix = known.removesuffix("conv1.weight")
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    with _hub.quiet():
        network, found = kind.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=dict(state),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = set(found["missing_keys"]) - {"masked_spec_embed"}  # that one only training uses
    unlike = [str(entry) for entry in found["mismatched_keys"]]
    if missing or unlike:
        raise DataError(
            f"the weights of a {config.model_type} as its configuration describes it",
            got=f"without {min(missing)}" if missing else f"of another shape: {min(unlike)}",
            fix="put the config.json beside the weights that belongs to them",
        )
    return cast(PreTrainedModel, network)


def numbers(config: PretrainedConfig, extractor: dict[str, Any]) -> dict[str, Any]:
    """The numbers of `preprocess/audio.py` for a network; the arguments are those of `build`.

    Raises:
        OptionError: it is no speech network of these, or not for the rate its extractor names.
    """
    kind = config.model_type
    if kind not in KINDS:
        raise OptionError(
            f"a speech network: {', '.join(KINDS)}", got=repr(kind), fix="choose another backbone"
        )
    rate = extractor.get("sampling_rate", RATE)
    if kind in WAVES:
        least, longest = receptive_field(config), LONGEST_S * rate
    elif rate != RATE:
        raise OptionError(
            f"{RATE} Hz, which the spectrogram of {kind} is made for",
            got=f"{rate} Hz in its preprocessor_config.json",
            fix="choose a network for that rate",
        )
    elif kind == "whisper":
        least, longest = FRAME, int(config.max_source_positions * WHISPER_STEP)
    else:
        least, longest = FRAME, int((config.max_length - 1) * HOP + FRAME)
    return {"rate": rate, "shortest": least, "longest": longest, "mask": kind != "whisper"}


def _window(config: PretrainedConfig, window: int | None) -> int:
    most = int(config.max_source_positions * WHISPER_STEP)
    if window is None:
        return most
    if window % WHISPER_STEP or not 0 < window <= most:
        nearest = min(max(1, round(window / WHISPER_STEP)) * WHISPER_STEP, most)
        raise OptionError(
            f"a window of {WHISPER_STEP} to {most} samples, in steps of {WHISPER_STEP}",
            got=str(window),
            fix=f"pass {nearest}",
        )
    return window


def _class_of(config: PretrainedConfig) -> Any:
    return WhisperEncoder if config.model_type == "whisper" else MODEL_MAPPING[type(config)]
