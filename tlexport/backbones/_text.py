"""Encoders and decoders of text behind one signature."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch


class TextBackbone(torch.nn.Module):
    """A language model without its head: its last hidden states side by side.

    Padding may stand on either side.

    Positions are counted over the real tokens: what a text is padded with, and where, changes
    nothing, which the libraries' own default (counting columns) does not give on the left.
    """

    def __init__(self, model: torch.nn.Module, layers: int = 1) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        accepted = inspect.signature(model.forward).parameters
        self._constants: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
        self._counts_positions = "position_ids" in accepted
        self._first = _first_position(model)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Both int64 [batch, sequence] -> float32 [batch, sequence, layers x width]."""
        more = dict(self._constants)
        if self._counts_positions:
            counted = attention_mask.cumsum(1) - 1
            more["position_ids"] = counted.clamp(min=0) + self._first
        if self.layers > 1:
            more["output_hidden_states"] = True
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        if self.layers > 1:
            return torch.cat(answer.hidden_states[-self.layers :], dim=2)
        return cast(torch.Tensor, answer.last_hidden_state)


def normalises_last(model: torch.nn.Module) -> bool:
    """Whether a norm of its own follows the last layer: then the layers' outputs are raw sums."""
    names = [name for name, _ in model.named_children()]
    return any("norm" in name.lower() or name.startswith("ln_") for name in names)


def _first_position(model: torch.nn.Module) -> int:
    """The position of the first token: RoBERTa's kind counts from after the padding's own."""
    embeddings = getattr(model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(cast(Any, embeddings).padding_idx) + 1
    return 0
