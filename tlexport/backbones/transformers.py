"""Text and speech networks of Hugging Face transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers.models.auto import modeling_auto

from tlexport.backbones import Pretrained, _hub, _speech, _tokenizer
from tlexport.backbones._text import TextBackbone, normalises_last
from tlexport.errors import OptionError

KNOWN = (
    "google-bert/bert-base-uncased",
    "distilbert/distilbert-base-uncased",
    "FacebookAI/roberta-base",
    "FacebookAI/xlm-roberta-base",
    "sentence-transformers/all-MiniLM-L6-v2",
    "microsoft/deberta-v3-small",
    "answerdotai/ModernBERT-base",
    "openai-community/gpt2",
    "HuggingFaceTB/SmolLM2-135M",
    "facebook/wav2vec2-base",
    "facebook/hubert-base-ls960",
    "microsoft/wavlm-base",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
    "openai/whisper-tiny.en",
)
"""Listed as examples: any name of the hub, and any folder, will do."""

LAYERS = 3
"""Hidden states of an encoder that are pooled side by side, the last among them.

The last layer serves what the network was trained for; those before it carry more of what other
tasks need (Tenney et al., "BERT rediscovers the classical NLP pipeline", 2019). With MiniLM a head
on three reached 0.79 / 0.88 / 0.95 on film, product and tweet sentiment, on the last alone
0.78 / 0.86 / 0.93 (five splits each), for no arithmetic more.
"""

HEADS = ("pooler", "lm_head", "cls", "classifier", "score", "projector", "qa_outputs")
"""What stands on a network for another task than features."""


def names() -> list[str]:
    """Well-known networks of the hub; any other name of it, or a folder, can be asked for too."""
    return list(KNOWN)


def build(name: str, recipe: Mapping[str, Any] | None = None) -> Pretrained:
    """The network `name` with start weights, and its tokenizer or its feature extractor's numbers.

    `name` is one of the hub's, a folder that `save_pretrained` wrote, or package:NAME for such a
    folder in an installed package.

    Raises:
        OptionError: there is no such model here or on the hub, it brings code of its own, or it
            is neither for texts nor for speech.
        DataError: the folder is damaged or has no tokenizer.
    """
    place = "" if recipe else _hub.place(name)
    config = _hub.restored(recipe["config"]) if recipe else _hub.config(place, KNOWN)
    if config.model_type in _speech.KINDS:
        return _speech_backbone(place, config, dict(recipe or {}))
    decoder = _decoder(config, name)
    numbers, files = ({}, {}) if recipe else _tokenizer.read(place, config)
    network = _without_pooler(_hub.empty(config, started=not recipe))
    made = dict(recipe) if recipe else {"config": _hub.plain(config)} | _pooling(place, decoder)
    if "layers" not in made:
        plain = decoder or normalises_last(network) or made["pooling"] != "mean"
        made["layers"] = 1 if plain else min(LAYERS, config.num_hidden_layers)
    return Pretrained(
        module=TextBackbone(network, made["layers"]),
        behead=lambda module: None,
        spare=tuple(f"{where}{head}." for head in HEADS for where in ("", "model.")),
        preprocess=numbers,
        modality="text",
        recipe=made,
        files=files,
        home=_home(place),
    )


def fetch(name: str) -> dict[str, torch.Tensor]:
    """The trained weights of `name`, safetensors only: of its folder, or from the hub."""
    place = _hub.place(name)
    network = _hub.trained(place)
    if network.config.model_type in _speech.KINDS:
        return dict(_speech.wrap(network, _hub.extractor(place)).state_dict())
    state = network.state_dict()
    return {f"model.{key}": tensor for key, tensor in state.items()}


def _without_pooler(network: Any) -> Any:
    """Take off the layer on the first token, which no feature comes from.

    Something stands in its place: SqueezeBERT's kind asks it unseen.
    """
    if getattr(network, "pooler", None) is not None:
        network.pooler = torch.nn.Identity()
    return network


def _speech_backbone(
    place: str, config: transformers.PretrainedConfig, recipe: dict[str, Any]
) -> Pretrained:
    """A network of clips; its feature extractor's numbers are part of the graph."""
    made = recipe or {"config": _hub.plain(config), "extractor": _hub.extractor(place)}
    made.setdefault("pooling", "mean")
    module = _speech.build(config, made["extractor"], made.get("window"))

    def narrow(window: int) -> Pretrained:
        step = _speech.WHISPER_STEP
        window = min(-(-window // step) * step, whole.preprocess["longest"])
        narrower = _speech.wrap(cast(Any, module.network), made["extractor"], window)
        return dataclasses.replace(
            whole,
            module=narrower,
            preprocess={**whole.preprocess, "longest": window},
            recipe={**made, "window": window},
            narrow=None,
        )

    whole = Pretrained(
        module=module,
        behead=lambda module: None,
        spare=tuple(f"{where}{head}." for head in HEADS for where in ("", "network.")),
        preprocess=_speech.numbers(config, made["extractor"]),
        modality="audio",
        recipe=made,
        home=_home(place),
        narrow=narrow if config.model_type == "whisper" else None,
    )
    return whole


def _home(place: str) -> str:
    return "folder" if (Path(place) / "config.json").is_file() else "hub"


def _decoder(config: transformers.PretrainedConfig, name: str) -> bool:
    """Whether a token sees those before it alone.

    Raises:
        OptionError: the network is neither encoder nor decoder of texts.
    """
    kind = config.model_type
    encoder = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.is_encoder_decoder or not (encoder or causal):
        raise OptionError(
            "an encoder (BERT ...) or decoder (GPT-2, Llama ...) of texts, or a speech encoder: "
            f"{', '.join(_speech.KINDS)}",
            got=f"{name} of type {kind!r}",
            fix="choose another with `tlexport backbones 'transformers/*'`",
        )
    return causal and not encoder


def _pooling(place: str, decoder: bool) -> dict[str, Any]:
    """How the network's makers make one vector of a text: sentence-transformers says it beside."""
    beside = Path(place) / "1_Pooling" / "config.json"
    if decoder or not beside.is_file():
        return {"pooling": "last" if decoder else "mean"}
    cls = json.loads(beside.read_text()).get("pooling_mode_cls_token")
    return {"pooling": "cls" if cls else "mean"}
