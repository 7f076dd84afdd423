"""The blocks of any backbone, from its input to its head."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from tlexport.errors import OptionError

CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)

STAGE = 0.5
"""Share of a repeated module's weights above which the repeated modules within are the blocks.

The stages of a ConvNeXt hold little else than their layers. A layer of MobileBERT has a stack of
small feed-forward parts, too, but attention and bottlenecks beside it: it is one block.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a network that is trained wholly or not at all.

    `modules` are the names of what it is made of, without overlap; `parameters` the full names of
    all its parameters, those that hang on a module of several blocks included. `repeats` tells a
    layer that the network has several of from a stem or a last layer.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    repeats: bool


def blocks(extractor: torch.nn.Module, probe: Sequence[torch.Tensor] = ()) -> tuple[Block, ...]:
    """The network's blocks, input side first; every parameter belongs to exactly one.

    Blocks are the layers that repeat (transformer layers, residual units, inverted residuals); in
    a network without any, its single layers. What stands before the first is one block with it
    or, where it has weights beyond norms, of its own; a norm belongs to the block before it.

    `probe` are inputs of the extractor: the order is then that of execution, which for a few
    networks is not that of registration.
    """
    pieces = list(_pieces(*_root(extractor)))
    if len(probe):
        pieces = _executed(extractor, pieces, probe)
    return _named(extractor, _joined(pieces))


def choose(found: Sequence[Block], unfreeze: str) -> tuple[Block, ...]:
    """The blocks that train: of `head` none, of `last-N` the N next to the head, of `all` all.

    Raises:
        OptionError: there are fewer than N blocks.
    """
    if unfreeze in ("head", "all"):
        return tuple(found) if unfreeze == "all" else ()
    number = unfreeze.removeprefix("last-")
    if int(number) > len(found):
        raise OptionError(
            f"--unfreeze last-N with N up to the backbone's {len(found)} blocks",
            got=unfreeze,
            fix=f"pass last-{len(found)} or fewer, or all",
        )
    return tuple(found[-int(number) :])


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A module that is not taken apart, or (`own`) the parameters of one that is.

    `unit` tells that it is one of those that repeat.
    """

    name: str
    module: torch.nn.Module
    unit: bool = False
    own: bool = False

    @property
    def norm(self) -> bool:
        """Whether it has nothing but vectors: norms, scales, biases."""
        return not self.own and all(each.ndim < 2 for each in self.module.parameters())

    @property
    def embedding(self) -> bool:
        """Whether it is a table, which belongs to the input wherever it is registered."""
        return isinstance(self.module, torch.nn.Embedding)


def _root(module: torch.nn.Module, name: str = "") -> tuple[torch.nn.Module, str]:
    """The first module with weights in more than one child, or of its own."""
    while len(found := _children(module, name)) == 1 and not _own(module):
        name, module = found[0]
    return module, name


def _pieces(module: torch.nn.Module, name: str) -> Iterator[_Piece]:
    """The root is taken apart, whatever it is."""
    if not _children(module, name):
        yield _Piece(name, module)
    else:
        yield from _opened(module, name)


def _opened(module: torch.nn.Module, name: str) -> Iterator[_Piece]:
    if _own(module):
        yield _Piece(name, module, own=True)
    children = _children(module, name)
    kinds = Counter(type(child) for _, child in children if _composite(child))
    for path, child in children:
        repeats = _composite(child) and (
            kinds[type(child)] > 1 or isinstance(module, torch.nn.ModuleList)
        )
        if _opens(child, repeats=repeats):
            yield from _opened(child, path)
        else:
            yield _Piece(path, child, unit=repeats)


def _opens(module: torch.nn.Module, *, repeats: bool) -> bool:
    if not _children(module, ""):
        return False
    if isinstance(module, CONTAINERS):
        return _several(module)
    if not repeats:
        return any(_stacks(each) for each in module.modules())
    lists = [child for _, child in _children(module, "") if isinstance(child, CONTAINERS)]
    inside = sum(_size(child) for child in lists if _twins(child))
    return inside > STAGE * _size(module)


def _several(module: torch.nn.Module) -> bool:
    """Whether a container holds more than one layer; a convolution and its norm are one."""
    children = [child for _, child in _children(module, "")]
    if any(_children(child, "") for child in children):
        return True
    plain = type(module) in CONTAINERS  # a class of its own was meant as one thing
    return plain and sum(not _Piece("", child).norm for child in children) > 1


def _stacks(module: torch.nn.Module) -> bool:
    """Whether it is a list in which a module repeats."""
    if not isinstance(module, CONTAINERS):
        return False
    if isinstance(module, torch.nn.ModuleList):
        return any(_composite(child) for _, child in _children(module, ""))
    return _twins(module)


def _twins(module: torch.nn.Module) -> bool:
    kinds = Counter(type(child) for _, child in _children(module, "") if _composite(child))
    return any(count > 1 for count in kinds.values())


def _composite(module: torch.nn.Module) -> bool:
    """Whether it has layers within and is no mere list of them."""
    return not isinstance(module, CONTAINERS) and bool(_children(module, ""))


def _children(module: torch.nn.Module, name: str) -> list[tuple[str, torch.nn.Module]]:
    """Children with parameters, by their full names."""
    prefix = f"{name}." if name else ""
    return [
        (prefix + key, child)
        for key, child in module.named_children()
        if next(child.parameters(), None) is not None
    ]


def _own(module: torch.nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _size(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _executed(
    extractor: torch.nn.Module, pieces: list[_Piece], probe: Sequence[torch.Tensor]
) -> list[_Piece]:
    """The pieces in the order in which they are first called.

    What is never called (weights that are read in passing, or not at all) stays with its
    neighbour.
    """
    calls: dict[str, int] = {}
    with contextlib.ExitStack() as hooks:
        for piece in pieces:
            if not piece.own:

                def note(*_: object, name: str = piece.name) -> None:
                    calls.setdefault(name, len(calls))

                hooks.callback(piece.module.register_forward_pre_hook(note).remove)
        with torch.inference_mode():
            extractor(*probe)
    order: list[tuple[int, int]] = []
    place = -1
    for number, piece in enumerate(pieces):
        if piece.own:  # belongs to what comes next in its module
            after = (calls[p.name] for p in pieces[number:] if not p.own and p.name in calls)
            order.append((next(after, place), -1))
        else:
            place = calls.get(piece.name, place)
            order.append((place, int(piece.name not in calls)))
    return [pieces[number] for number in sorted(range(len(pieces)), key=order.__getitem__)]


def _joined(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces put together to blocks: tables and what stands before the first unit are one."""
    first = next((number for number, piece in enumerate(pieces) if piece.unit), 0)
    stem = [p for number, p in enumerate(pieces) if number < first or p.embedding]
    rest = [p for number, p in enumerate(pieces) if number >= first and not p.embedding]
    found: list[list[_Piece]] = []
    waiting: list[_Piece] = []
    if all(piece.norm or piece.own for piece in stem):
        waiting = stem
    else:
        found.append(stem)
    for piece in rest:
        if piece.own or (piece.norm and not found):
            waiting.append(piece)
        elif piece.norm:
            found[-1].append(piece)
        else:
            found.append([*waiting, piece])
            waiting = []
    if waiting:
        found[-1:] = [[*(found[-1] if found else []), *waiting]]
    return found


def _named(extractor: torch.nn.Module, joined: list[list[_Piece]]) -> tuple[Block, ...]:
    """Blocks by the names that the extractor gives to modules and parameters."""
    names = {id(each): name for name, each in extractor.named_parameters()}
    found = []
    for pieces in joined:
        mine = []
        for piece in pieces:
            for each in piece.module.parameters(recurse=not piece.own):
                if id(each) in names:  # a shared weight is its first block's
                    mine.append(names.pop(id(each)))
        core = next((p for p in pieces if p.unit or not (p.norm or p.own)), pieces[0])
        modules = tuple(piece.name for piece in pieces if not piece.own)
        repeats = any(piece.unit for piece in pieces)
        found.append(
            Block(name=core.name, modules=modules, parameters=tuple(mine), repeats=repeats)
        )
    return tuple(block for block in found if block.parameters)
