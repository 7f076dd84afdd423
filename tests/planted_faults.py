"""What goes wrong between an original and its export, planted."""

from __future__ import annotations

import numpy as np
import small_bundles
import torch

from tlexport.errors import ServerError

# In the file: each changes the weights, a dict of arrays.


def perturbed(arrays):
    noise = np.random.default_rng(0).normal(1, 1e-3, arrays["second.weight"].shape)
    arrays["second.weight"] *= noise.astype(np.float32)


def one_bias(arrays):
    arrays["head.bias"][2] += 1e-3


def channels_turned(arrays):
    arrays["first.weight"][:] = arrays["first.weight"][:, ::-1].copy()


def height_and_width_turned(arrays):
    arrays["first.weight"][:] = arrays["first.weight"].transpose(0, 1, 3, 2).copy()


def labels_swapped(arrays):
    for name in ("head.weight", "head.bias"):
        arrays[name][[0, 1]] = arrays[name][[1, 0]]


def a_factor(arrays):
    arrays["head.weight"] *= np.float32(1.001)
    arrays["head.bias"] *= np.float32(1.001)


def all_zeros(arrays):
    arrays["head.weight"][:] = 0
    arrays["head.bias"][:] = 0


def all_nan(arrays):
    arrays["head.bias"][:] = np.nan


def fp16_rounded(arrays):
    for name, array in arrays.items():
        if array.dtype == np.float32:
            arrays[name][...] = array.astype(np.float16)


def one_bit(arrays):
    bits = arrays["second.weight"].reshape(-1).view(np.uint32)
    bits[7] ^= 1 << 22  # the mantissa's top bit


WEIGHTS = [
    perturbed,
    one_bias,
    channels_turned,
    height_and_width_turned,
    labels_swapped,
    a_factor,
    all_zeros,
    all_nan,
    fp16_rounded,
]


# In the answers: each gets the real runtime and the inputs.


def shuffled(real, inputs):
    return {"logits": np.roll(real(inputs)["logits"], 1, axis=0)}


def leaking(real, inputs):
    logits = real(inputs)["logits"]
    return {"logits": logits + np.float32(1e-2) * logits.mean(0, keepdims=True)}


def nan_on_one(real, inputs):
    logits = real(inputs)["logits"].copy()
    target = small_bundles.images(12)[3]
    logits[(inputs["images"] == target).all((1, 2, 3)), 2] = np.nan
    return {"logits": logits}


def random(real, inputs):
    logits = real(inputs)["logits"]
    return {"logits": logits + np.random.default_rng().normal(0, 0.1, logits.shape).astype("f4")}


def constant(real, inputs):
    logits = real(inputs)["logits"]
    return {"logits": np.zeros_like(logits) + small_bundles.images(1).mean().astype("f4") / 1e3}


def first_row_only(real, inputs):
    return {"logits": real(inputs)["logits"][:1]}


def missing(real, inputs):
    return {"scores": real(inputs)["logits"]}


def one_more(real, inputs):
    return real(inputs) | {"debug": np.zeros(1)}


def halved(real, inputs):
    return {"logits": real(inputs)["logits"].astype(np.float16)}


def column(real, inputs):
    return {"logits": real(inputs)["logits"][:, :, None]}


def not_above_two(real, inputs):
    if len(inputs["images"]) > 2:
        raise ServerError("an answer", got="batch size exceeds 2", fix="ask less")
    return real(inputs)


class TrainModeNorm(small_bundles.Tiny):
    """Batch statistics in place of the running ones, as an export in train mode does."""

    def forward(self, images):
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        hidden = self.first(pixels)
        mean = hidden.mean((0, 2, 3), keepdim=True)
        spread = ((hidden - mean) ** 2).mean((0, 2, 3), keepdim=True)
        hidden = (hidden - mean) / torch.sqrt(spread + self.norm.eps)
        hidden = hidden * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
        hidden = torch.nn.functional.adaptive_avg_pool2d(
            torch.relu(self.second(torch.relu(hidden))), 2
        )
        return self.head(hidden.flatten(1))
