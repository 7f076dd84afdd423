"""Small Hugging Face folders with random weights: every family of speech models."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

RATE = 16_000
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WAVES = {
    **SMALL,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
FAMILIES = {
    "wav2vec2": transformers.Wav2Vec2Config(**WAVES),
    "hubert": transformers.HubertConfig(**WAVES),
    "wavlm": transformers.WavLMConfig(**WAVES),
    "ast": transformers.ASTConfig(**SMALL, max_length=128),
    "whisper": transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    ),
}


def write(place: Path, family: str) -> Path:
    """A folder as `save_pretrained` writes it, of a small network of that family."""
    torch.manual_seed(0)
    transformers.AutoModel.from_config(FAMILIES[family]).save_pretrained(place)
    numbers = {"sampling_rate": RATE, "do_normalize": True}
    (place / "preprocessor_config.json").write_text(json.dumps(numbers))
    return place
