"""Texts of unequal length: pooled, and asked about."""

from __future__ import annotations

import numpy as np
import torch

from tlexport.spec import Probe

LENGTHS = (1, 2, 16)
"""Tokens asked besides the maximum: one, the smallest real sequence, a usual one."""

FARTHER = 7
"""Columns of padding added, so that no size is a round number."""


class Pool(torch.nn.Module):
    """One vector of a sequence: the mean, the first or the last of its real tokens.

    Weights instead of an index: a gather by ArgMax has no int64 kernel in ONNX Runtime, and one by
    a count of the mask finds the wrong token under left padding.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Float [batch, sequence, width], int64 [batch, sequence] -> float [batch, width]."""
        real = mask > 0
        counted = real.to(torch.int64).cumsum(1)
        if self.how == "mean":
            chosen = real
        elif self.how == "cls":
            chosen = real & (counted == 1)
        else:
            chosen = real & (counted == counted[:, -1:])
        kept = hidden.masked_fill(~chosen.unsqueeze(-1), 0)  # what padding holds may be NaN
        return kept.sum(1) / chosen.sum(1, keepdim=True).clamp(min=1).to(hidden.dtype)


def probes(inputs: dict[str, np.ndarray], numbers: dict[str, int], most: int) -> list[Probe]:
    """Questions of other lengths, and golden rows padded otherwise than they are stored.

    inputs: input_ids and attention_mask, int64 [batch, sequence]. Lengths 1, 2, 16 and the
    maximum; padding on either side; a row that is nearly all padding; each length alone.
    """
    pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    rows = [ids[mask > 0] for ids, mask in pairs]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    longest, limit, pad = rows[order[-1]], numbers["max_length"], numbers["pad_id"]
    asked = []
    for length in sorted({min(length, limit) for length in (*LENGTHS, limit)}):
        texts = [np.resize(longest, length), np.resize(rows[order[0]], length)]
        asked.append(Probe(name=f"length {length}", inputs=padded(texts[:most], length, pad)))
    few = tuple(dict.fromkeys([order[0], order[-1], *order[1:]]))[: max(1, min(most, 4))]
    texts = [rows[row] for row in few]
    width = max(map(len, texts))
    asked.append(
        Probe(
            name="unpadded", inputs=padded([rows[few[0]]], len(rows[few[0]]), pad), same_as=few[:1]
        )
    )
    wide = min(width + FARTHER, max(limit, width))
    for side in ("left", "right"):
        asked.append(
            Probe(name=f"padded {side}", inputs=padded(texts, wide, pad, side), same_as=few)
        )
    asked.append(
        Probe(
            name="nearly all padding",
            inputs=padded([rows[few[0]]], max(limit, width), pad),
            same_as=few[:1],
        )
    )
    return asked


def padded(
    texts: list[np.ndarray], width: int, pad: int, side: str = "right"
) -> dict[str, np.ndarray]:
    """Token ids as a batch of that width: input_ids and attention_mask, int64 [batch, width]."""
    input_ids = np.full((len(texts), width), pad, dtype=np.int64)
    attention_mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, ids in enumerate(texts):
        where = slice(width - len(ids), None) if side == "left" else slice(len(ids))
        input_ids[row, where] = ids
        attention_mask[row, where] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
