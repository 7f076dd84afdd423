"""The original computed in another arithmetic."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
SIGNIFICANT = {"fp32": 23, "fp16": 11, "bf16": 8}
"""Bits of a significand, the hidden one included (IEEE 754-2019, table 3.5; bfloat16).

"fp32" has one less than float32's 24: a second draw of what float32's own rounding costs.
"""
LARGE = 1e30
"""Values beyond are no results but marks, such as the -3.4e38 of an attention mask."""

aten = torch.ops.aten
PRODUCTS = {
    aten.linear.default: (0, 1, 0),
    aten.convolution.default: (0, 1, 0),
    aten.conv1d.default: (0, 1, 0),
    aten.conv2d.default: (0, 1, 0),
    aten.addmm.default: (1, 2, 1),
    aten.mm.default: (0, 1, 1),
    aten.matmul.default: (0, 1, -1),
    aten.bmm.default: (0, 1, None),
}
"""Operators that int8 is for: where activation and weight stand, and the weight's axis of
output channels (None: no weight but a second activation)."""


class Float64(TorchDispatchMode):
    """Every operator takes and gives float64, whatever the network's code asks for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Widen what goes in, dtypes that are asked for by name, and what comes out."""
        given = (args, kwargs or {})
        wide, named = pytree.tree_map(_wider, given)
        if func is aten.convolution.default and _is_depthwise(*wide[:2], *wide[6:9]):
            x, weight, bias = wide[:3]
            return _depthwise(x, weight, bias, wide[3:6])
        answer = func(*wide, **named)
        if func._schema.is_mutable:  # what it wrote to may be a copy: hand it back
            leaves = zip(pytree.tree_leaves(given), pytree.tree_leaves((wide, named)), strict=True)
            for before, after in leaves:
                if isinstance(before, torch.Tensor) and before is not after:
                    before.copy_(after)
        return pytree.tree_map(lambda x: _wider(x) if isinstance(x, torch.Tensor) else x, answer)


class Rounded(TorchDispatchMode):
    """Every operator's answer is rounded to so many significant bits; exponents are unbounded.

    What an export of that precision should lose, and nothing of what it may lose besides
    (overflow, underflow): that is a fault of the export.
    """

    bits = 24

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute in float32, then round the answer; what was written in place, in place."""
        answer = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            for tensor in pytree.tree_leaves(answer):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                    tensor.copy_(rounded(tensor, self.bits))
            return answer
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return answer  # a view: rounded already, and to be written through
        return pytree.tree_map(lambda x: rounded(x, self.bits), answer)


class Quantised(TorchDispatchMode):
    """Products take activations of 8 bits per tensor and weights of 8 bits per output channel.

    Ranges are each tensor's own smallest and largest value. Source: Jacob et al., "Quantization
    and training of neural networks for efficient integer-arithmetic-only inference" (2018).
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the two factors of a product; everything else stays float32."""
        if func in PRODUCTS:
            first, second, channels = PRODUCTS[func]
            args = list(args)
            args[first] = _eight_bits(args[first], None)
            args[second] = _eight_bits(args[second], channels)
        return func(*args, **(kwargs or {}))


def prepared(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """The network with its weights as that arithmetic holds them, once rather than per call."""
    if name == "float64":
        return network.double()
    if name in SIGNIFICANT:
        for weight in network.parameters():
            weight.data = rounded(weight.data, SIGNIFICANT[name])
    return network


def rounded(x: Any, bits: int) -> Any:
    """A float32 tensor to so many significant bits, to the nearest; anything else as it is.

    Source: Dekker, "A floating-point technique for extending the available precision" (1971).
    """
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    spread = x * float(2 ** (24 - bits) + 1)
    return torch.where(x.abs() < LARGE, spread - (spread - x), x)


def _is_depthwise(
    x: torch.Tensor, weight: torch.Tensor, transposed: bool, _: Any, groups: int
) -> bool:
    return not transposed and groups == x.shape[1] == weight.shape[0] > 1


def _depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: tuple[list[int], list[int], list[int]],
) -> torch.Tensor:
    """A convolution of each channel by itself, as a sum over the kernel's places.

    In float64 PyTorch runs one convolution per channel, which takes ten times as long. Shapes:
    x [batch, channels, *size], weight [channels, 1, *kernel] -> [batch, channels, *size]; window is
    stride, padding and dilation by axis.
    """
    stride, padding, dilation = window
    axes = x.ndim - 2
    around = [edge for width in reversed(padding) for edge in (width, width)]
    x = torch.nn.functional.pad(x, around)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, stride, strict=True)]
    answer = x.new_zeros((*x.shape[:2], *sizes))
    factors = weight.flatten(1).T.reshape(-1, x.shape[-axes - 1], *[1] * axes)
    places = itertools.product(*map(range, weight.shape[2:]))
    for factor, place in zip(factors, places, strict=True):
        seen: list[Any] = [
            slice(at * d, at * d + s * (n - 1) + 1, s)
            for at, d, s, n in zip(place, dilation, stride, sizes, strict=True)
        ]
        answer.addcmul_(x[(..., *seen)], factor)
    return answer if bias is None else answer.add_(bias.reshape(-1, *[1] * axes))


def _wider(x: Any) -> Any:
    if isinstance(x, torch.dtype):
        return WIDER.get(x, x)
    if isinstance(x, torch.Tensor) and x.dtype in WIDER:
        return x.to(WIDER[x.dtype])
    return x


def _eight_bits(x: torch.Tensor, channels: int | None) -> torch.Tensor:
    if x.dtype != torch.float32 or not x.numel():
        return x
    if channels is None:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = (high - low) / 255 or 1.0
        zero = round(-low / step)
        return torch.fake_quantize_per_tensor_affine(x, step, zero, 0, 255)
    others = [axis for axis in range(x.ndim) if axis != channels % x.ndim]
    steps = (x.abs().amax(others, keepdim=True) / 127).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / steps).round() * steps


@contextlib.contextmanager
def arithmetic(name: str | None) -> Iterator[None]:
    """Compute as float64, fp16, bf16 or int8 does; None: as the network is.

    Attention is computed in its parts, so that each part is rounded.
    """
    if name is None:
        yield
        return
    modes: dict[str, Any] = {"float64": Float64, "int8": Quantised}
    mode = modes.get(name, Rounded)()
    if name in SIGNIFICANT:
        mode.bits = SIGNIFICANT[name]
    parts = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with parts, mode:
        yield


ARITHMETICS = ("float64", *SIGNIFICANT, "int8")
