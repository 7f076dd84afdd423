"""Sequence classifiers of transformers, pooled in the graph."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch


class Encoder(torch.nn.Module):
    """A classifier that pools for itself: BERT and its kin.

    They take the first token for the one to pool and count positions from there, so what is padded
    on the left is turned round to the right first; other rows stay as they are.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """input_ids, attention_mask: int64 [batch, sequence] -> logits [batch, labels]."""
        before = (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        turned = places + before
        turned = torch.where(turned < input_ids.shape[1], turned, turned - input_ids.shape[1])
        ids, mask = (torch.gather(each, 1, turned) for each in (input_ids, attention_mask))
        return self.model(input_ids=ids, attention_mask=mask).logits


class Decoder(torch.nn.Module):
    """A classifier on the last token: GPT-2, Llama and their kin.

    transformers finds that token by the id it takes for padding, and once shuffled the batch when
    exported. Here it is the last one the mask counts, wherever the padding stands, and positions
    count real tokens only: the answer is the same for padding on the left, on the right, or none.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes = set(inspect.signature(cast(Any, model).base_model.forward).parameters)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """input_ids, attention_mask: int64 [batch, sequence] -> logits [batch, labels]."""
        model: Any = self.model
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        more = {"position_ids": positions, "use_cache": False}
        more = {name: value for name, value in more.items() if name in self.takes}
        hidden = model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).last_hidden_state
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * attention_mask).amax(1)
        index = last[:, None, None].expand(-1, 1, hidden.shape[-1])
        return model.score(torch.gather(hidden, 1, index).squeeze(1))


def classifier(model: torch.nn.Module) -> torch.nn.Module:
    """The wrapper for a model of transformers: those with a `score` layer pool the last token."""
    return (
        Decoder(model)
        if isinstance(getattr(model, "score", None), torch.nn.Linear)
        else Encoder(model)
    )
