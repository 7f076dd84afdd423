"""Small Hugging Face folders with random weights: every family of language models."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

WORDS = [
    "a good film and a warm one",
    "what a bad day, it rained and rained",
    "the cat sat on the mat while the dog slept",
    "numbers such as 1 2 3 4 5 6 7 8 9 0 happen; so do signs: ! ? . ,",
]
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
HEADS = {"num_attention_heads": 2}
SHORT = {"max_position_embeddings": 64}
FAMILIES = {
    "bert": {**SMALL, **HEADS, **SHORT},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **SHORT},
    "roberta": {**SMALL, **HEADS, "max_position_embeddings": 66, "pad_token_id": 1},
    "mpnet": {**SMALL, **HEADS, "max_position_embeddings": 66, "pad_token_id": 1},
    "electra": {**SMALL, **HEADS, **SHORT, "embedding_size": 32},
    "albert": {**SMALL, **HEADS, **SHORT, "embedding_size": 32},
    "deberta-v2": {
        **SMALL,
        **HEADS,
        **SHORT,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "modernbert": {
        **SMALL,
        **HEADS,
        **SHORT,
        "num_hidden_layers": 4,
        "local_attention": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {**SMALL, **SHORT, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {**SMALL, **SHORT, "num_attention_heads": 4, "num_key_value_heads": 2},
}
RARER = {
    "squeezebert": {**SMALL, **SHORT, "num_attention_heads": 4, "embedding_size": 32},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
}
DECODERS = ("gpt2", "llama", "qwen2")


def tokenizer(folder: Path, *, decoder: bool, pad: int = 0) -> int:
    """Save a small tokenizer of the family's kind; the number of its tokens."""
    specials = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    specials.insert(pad, "[PAD]")
    if decoder:
        built = tokenizers.Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=sorted(alphabet)
        )
        built.train_from_iterator(WORDS, trainer)
        special = {"eos_token": "<|end|>", "bos_token": "<|end|>"}
    else:
        # Listed, not trained: WordPieceTrainer breaks ties in another order each time.
        words = {word.strip(",;:") for line in WORDS for word in line.split()}
        letters = {letter for line in WORDS for letter in line if letter != " "}
        pieces = [*specials, *sorted(letters | words), *sorted(f"##{each}" for each in letters)]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        built = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        built.normalizer = normalizers.BertNormalizer()
        built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
        special |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    if not decoder:
        ends = [(name, built.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        built.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=ends
        )
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=built, **special)
    saved.save_pretrained(folder)
    return built.get_vocab_size()


def write(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder as `save_pretrained` writes it, of a small network of that family."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = dict((FAMILIES | RARER)[family])
    decoder = family in DECODERS
    size = tokenizer(folder, decoder=decoder, pad=numbers.get("pad_token_id", 0))
    if decoder:
        numbers |= {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(family, vocab_size=size, **numbers)
    torch.manual_seed(seed)
    network = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # wide enough that texts differ and a fault shows
        for tensor in network.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 0.2)
    network.save_pretrained(folder)
    return folder
