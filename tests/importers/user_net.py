"""Networks as users have them, healthy and not; imported by name, as theirs are."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional


class Two(nn.Module):
    """Two inputs, three outputs in a dict: logits, a number, a row per token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 8)
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)
        self.value = nn.Linear(8, 1)

    def forward(self, numbers, ids):
        words = self.words(ids)
        hidden = self.drop(torch.tanh(self.first(numbers) + words.mean(1)))
        return {
            "logits": self.head(hidden),
            "value": self.value(hidden).squeeze(1),
            "tokens": words * hidden[:, None],
            "loss": None,
        }


def two():
    return Two()


@dataclasses.dataclass
class Answer:
    map: torch.Tensor
    parts: tuple[torch.Tensor, ...]


class Segments(nn.Module):
    """A map per image, any size, in a dataclass; without weights."""

    def forward(self, x):
        flat = functional.avg_pool2d(x, 3, 1, 1)
        return Answer(map=flat, parts=(flat.mean((1, 2, 3)), x.amax((2, 3))))


class Branching(nn.Module):
    def forward(self, x):
        if x.abs().max() > 100:
            return x + 1
        return torch.relu(x)


class Counting(nn.Module):
    def forward(self, x):
        rows = len(x)
        return torch.stack([x[row] * 2 for row in range(rows)])


class Viewing(nn.Module):
    def forward(self, x):
        return x.view(2, -1)


class Longer(nn.Module):
    def forward(self, x):
        if x.shape[1] > 50:
            return x * 2
        return x


class FixedLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.arange(7.0))

    def forward(self, x):
        return x + self.places


class Noisy(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5)


class Outer(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.inner = inner

    def forward(self, x):
        return self.inner(self.before(x))


def noisy():
    return Outer(Noisy())


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x):
        return self.norm(x.view(-1, 2, 2, 1)).flatten(1)


def batch_norm():
    return Outer(Norm())


def one_row_norm():
    return Outer(nn.BatchNorm1d(4, track_running_stats=False))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean()


class Text(nn.Module):
    def forward(self, x):
        return x, "done"


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.zeros(5, 5)


class InPlace(nn.Module):
    def forward(self, x):
        x += 1
        return x


class SameName(nn.Module):
    def forward(self, x):
        return {"x": x * 2}


class Half(nn.Module):
    def forward(self, x):
        return x.bfloat16()


class NotANumber(nn.Module):
    def forward(self, x):
        return torch.log(x - 10)


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x) + 1


def fails():
    raise RuntimeError("no such checkpoint")


def no_module():
    return 7


def needs(argument):
    return argument
