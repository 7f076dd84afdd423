"""Fused attention as PyTorch's exporter can take it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional


@contextlib.contextmanager
def in_four_dimensions() -> Iterator[None]:
    """Have `scaled_dot_product_attention` flatten what stands before (heads, tokens, width).

    PyTorch takes any number of dimensions, the ONNX exporter four; networks that attend within
    windows (Hiera, NesT, Twins) have five. The answers are the same but for rounding. They are
    copied: the exporter decomposes attention twice, with its heads here and there in memory, and
    takes a `reshape` behind it for a view that it no longer is (MaxViT, CoAtNet).
    """
    fused = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> torch.Tensor:
        before = query.shape[:-3]
        if len(before) > 1:
            if attn_mask is not None and attn_mask.ndim > 3:
                attn_mask = attn_mask.expand(*before, *attn_mask.shape[-3:]).flatten(0, -4)
            query, key, value = (tensor.flatten(0, -4) for tensor in (query, key, value))
        answer = fused(query, key, value, attn_mask, *args, **more)
        answer = answer.clone(memory_format=torch.contiguous_format)
        return answer.reshape(*before, *answer.shape[-3:]) if len(before) > 1 else answer

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused
