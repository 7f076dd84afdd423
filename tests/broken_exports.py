"""Exports that are broken as users' were, each with the cause that shall be named.

Sources of the faults: reports to exporters, runtimes and servers; the commonest is a network that
was exported in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import small_bundles
import torch
from onnx import helper, numpy_helper


class Normalise(torch.nn.Module):
    """ImageNet's statistics, `times` over."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            pixels = (pixels - self.mean) / self.std
        return pixels


class Norm(torch.nn.LayerNorm):
    """Layer normalisation in its parts; `half` computes them in float16."""

    half_inside = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 4000
        inner = x.half() if self.half_inside else x
        gap = inner - inner.mean(-1, keepdim=True)
        spread = (gap * gap).mean(-1, keepdim=True)
        found = (gap / torch.sqrt(spread + self.eps)).float()
        return found * self.weight + self.bias


@dataclass
class How:
    """What the network does; the defaults are right."""

    antialias: bool = True
    mode: str = "bilinear"
    normalise: int = 1
    scale: float = 255.0
    bn_eps: float = 1e-5
    gelu: str = "none"
    half: bool = False
    pool: str = "avg"
    noise: float = 0.0
    batch_statistics: bool = False
    ceil: bool = False
    padding: str = "zeros"
    slope: float = 0.0
    after: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda x: x)
    before: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda x: x)


class Mixed(torch.nn.Module):
    """images: uint8 [batch, 16, 16, 3] -> logits: float32 [batch, 4], with the usual layers."""

    def __init__(self, how: How | None = None, seed: int = 0) -> None:
        super().__init__()
        self.how = how = how or How()
        torch.manual_seed(seed)
        self.normalise = Normalise(how.normalise)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode=how.padding)
        self.norm = torch.nn.BatchNorm2d(8, eps=how.bn_eps)
        self.second = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.act = torch.nn.GELU(approximate=how.gelu)
        self.layer_norm = Norm(16)
        self.layer_norm.half_inside = how.half
        self.mix = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 4)
        torch.nn.init.normal_(self.norm.running_mean, std=0.1)
        torch.nn.init.uniform_(self.norm.running_var, 0.05, 0.5)
        torch.nn.init.normal_(self.norm.bias, std=0.1)
        torch.nn.init.normal_(self.head.weight, std=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        how = self.how
        x = how.before(images).to(torch.float32).permute(0, 3, 1, 2) / how.scale
        options = {"mode": how.mode, "antialias": how.antialias} if how.mode == "bilinear" else {}
        options = options or {"mode": how.mode}
        x = torch.nn.functional.interpolate(x, size=(11, 11), **options)
        x = self.first(self.normalise(x))
        if how.batch_statistics:
            mean, spread = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            x = (x - mean[:, None, None]) / torch.sqrt(spread + 1e-5)[:, None, None]
            x = x * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
        else:
            x = self.norm(x)
        x = torch.nn.functional.leaky_relu(x, how.slope) if how.slope else torch.relu(x)
        pooled = torch.nn.functional.avg_pool2d if how.pool == "avg" else None
        pooled = pooled or torch.nn.functional.max_pool2d
        x = self.act(self.second(pooled(x, 2, ceil_mode=how.ceil)))
        x = self.layer_norm(x.flatten(2).transpose(1, 2))
        x = torch.relu(self.mix(x))
        if how.noise:
            x = x + how.noise * torch.randn_like(x)
        return how.after(self.head(x.mean(1)))


def exported(how: How, place: Path, seed: int = 0, *, batch: int | None = None) -> Path:
    """The network, but done otherwise, as an ONNX file."""
    network = Mixed(how, seed).eval()
    small_bundles.export(network, place, batch=batch)
    return place


def weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path, Path], Path]:
    """An edit of the healthy file's weights."""

    def edited(healthy: Path, place: Path) -> Path:
        return small_bundles.edit(healthy, place, change)

    return edited


def graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path, Path], Path]:
    """An edit of the healthy file's graph."""

    def edited(healthy: Path, place: Path) -> Path:
        model = onnx.load(healthy)
        change(model)
        onnx.save(model, place)
        return place

    return edited


def network(how: How, **more: Any) -> Callable[[Path, Path], Path]:
    """The network done otherwise."""

    def made(healthy: Path, place: Path) -> Path:
        return exported(how, place, **more)

    return made


def one_bit(arrays: dict[str, np.ndarray]) -> None:
    """The lowest bit of one weight: no answer shows it."""
    arrays["mix.weight" if "mix.weight" in arrays else biggest(arrays)].view(np.uint32).flat[5] ^= 1


def high_bit(arrays: dict[str, np.ndarray]) -> None:
    arrays["second.weight"].view(np.uint32).flat[7] ^= 1 << 29


def biggest(arrays: dict[str, np.ndarray]) -> str:
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    return max(floats, key=lambda name: floats[name].size)


def swapped_head(arrays: dict[str, np.ndarray]) -> None:
    arrays["head.weight"][[1, 3]] = arrays["head.weight"][[3, 1]]
    arrays["head.bias"][[1, 3]] = arrays["head.bias"][[3, 1]]


def not_a_number(arrays: dict[str, np.ndarray]) -> None:
    arrays["second.weight"].flat[3] = np.nan


def half_stored(arrays: dict[str, np.ndarray]) -> None:
    for array in arrays.values():
        if array.dtype == np.float32:
            array[...] = array.astype(np.float16)


def eight_bits(arrays: dict[str, np.ndarray]) -> None:
    for array in arrays.values():
        if array.dtype == np.float32 and array.ndim > 1:
            step = np.abs(array).max() / 127
            array[...] = np.round(array / step) * step


def one_channel_zero(arrays: dict[str, np.ndarray]) -> None:
    arrays["second.weight"][4] = 0


def labels_of_another(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="tlexport.labels", value='["dog", "cat", "eel", "fox"]')


def through(model: onnx.ModelProto, nodes: list[onnx.NodeProto], inner: str) -> None:
    """Let the graph's output go through more nodes; `inner` is its name before them."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = inner
    model.graph.node.extend(nodes)


def shuffled(model: onnx.ModelProto) -> None:
    """The batch the other way round, as a reversed index leaves it."""
    for name, value in (("_s", [-1]), ("_e", [-(2**62)]), ("_a", [0]), ("_t", [-1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    turn = helper.make_node("Slice", ["_in", "_s", "_e", "_a", "_t"], ["logits"])
    through(model, [turn], "_in")


def first_row(model: onnx.ModelProto) -> None:
    """Every row is the first's."""
    nodes = [
        helper.make_node("Shape", ["_in"], ["_shape"]),
        helper.make_node("Gather", ["_in", "_zero"], ["_row"]),
        helper.make_node("Expand", ["_row", "_shape"], ["logits"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "_zero"))
    through(model, nodes, "_in")


def all_zero(model: onnx.ModelProto) -> None:
    through(model, [helper.make_node("Sub", ["_in", "_in"], ["logits"])], "_in")


def train_mode(model: onnx.ModelProto) -> None:
    """A Dropout whose training mode is on."""
    for name, value in (("_ratio", np.float32(0.3)), ("_mode", np.bool_(True))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    through(model, [helper.make_node("Dropout", ["_in", "_ratio", "_mode"], ["logits"])], "_in")


def renamed(model: onnx.ModelProto) -> None:
    through(model, [], "scores")
    model.graph.output[0].name = "scores"


def of_integers(model: onnx.ModelProto) -> None:
    through(model, [helper.make_node("ArgMax", ["_in"], ["logits"], axis=1, keepdims=0)], "_in")
    del model.graph.output[:]
    shape = helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, ["batch"])
    model.graph.output.append(shape)


def cut_short(healthy: Path, place: Path) -> Path:
    place.write_bytes(healthy.read_bytes()[:-4000])
    return place


@dataclass(frozen=True)
class Broken:
    """A broken export: how it is made, the cause that is named, and words that say where."""

    name: str
    make: Callable[[Path, Path], Path]
    cause: str
    told: str = ""


EVERY = (
    Broken("train-mode batch norm", network(How(batch_statistics=True)), "depends-on-batch"),
    Broken("a Dropout node in training mode", graph(train_mode), "training-mode", "Dropout"),
    Broken("noise left on", network(How(noise=0.05)), "random", "RandomNormal"),
    Broken("frozen batch axis", network(How(), batch=2), "constant-axis", "'batch'"),
    Broken("shuffled batch", graph(shuffled), "shuffled-batch"),
    Broken("the first row for all", graph(first_row), "first-row"),
    Broken("all zeros", graph(all_zero), "zeros"),
    Broken("weights of another epoch", network(How(), seed=1), "weights", "weights of the file"),
    Broken("one weight's lowest bit", weights(one_bit), "weights", "one weight"),
    Broken("one weight's high bit", weights(high_bit), "weights", "second.weight"),
    Broken("one channel lost", weights(one_channel_zero), "weights", "second.weight"),
    Broken("a NaN among the weights", weights(not_a_number), "not-finite", "second.weight"),
    Broken("weights rounded to half", weights(half_stored), "weights"),
    Broken("weights rounded to 8 bits", weights(eight_bits), "weights"),
    Broken("swapped labels", weights(swapped_head), "swapped-labels", "dog, fox"),
    Broken("labels of another model", graph(labels_of_another), "labels", "dog, cat"),
    Broken("normalised twice", network(How(normalise=2)), "preprocessing"),
    Broken("not normalised", network(How(normalise=0)), "preprocessing"),
    Broken("divided by 256", network(How(scale=256.0)), "preprocessing"),
    Broken("resized without antialias", network(How(antialias=False)), "preprocessing", "Resize"),
    Broken("resized by nearest", network(How(mode="nearest")), "preprocessing", "Resize"),
    Broken("channels reversed", network(How(before=lambda x: x.flip(3))), "channel-order"),
    Broken("height for width", network(How(before=lambda x: x.transpose(1, 2))), "transposed"),
    Broken("mirrored", network(How(before=lambda x: x.flip(2))), "mirrored"),
    Broken("GELU by tanh", network(How(gelu="tanh")), "node", "act"),
    Broken("overflow in float16", network(How(half=True)), "overflow", "layer_norm"),
    Broken("epsilon of another library", network(How(bn_eps=1e-3)), "node", "norm"),
    Broken("maximum for average", network(How(pool="max")), "node", "Pool"),
    Broken("leaky for plain ReLU", network(How(slope=0.01)), "node", "Relu"),
    Broken("edges reflected", network(How(padding="reflect")), "node", "first"),
    Broken("softmax in addition", network(How(after=lambda x: x.softmax(1))), "softmax"),
    Broken("sigmoid in addition", network(How(after=torch.sigmoid)), "sigmoid"),
    Broken("clamped answers", network(How(after=torch.relu)), "relu"),
    Broken("temperature", network(How(after=lambda x: x / 1.5)), "factor"),
    Broken("one bias more", network(How(after=lambda x: x + 0.01)), "offset"),
    Broken("another output's name", graph(renamed), "signature", "scores"),
    Broken("classes in place of logits", graph(of_integers), "signature", "int64"),
    Broken("a file cut short", cut_short, "corrupt-file"),
)
