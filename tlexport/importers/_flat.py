"""A network of any calling habit: tensors in, tensors out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from tlexport.errors import SpecError, place_of
from tlexport.spec import Tensors, TensorSpec

Ask = Callable[[Tensors], dict[str, np.ndarray]]


class Flat(torch.nn.Module):
    """Calls a network by position or by name, and answers a tuple of tensors.

    `keywords` are the names it is called with, empty for by position. `outputs` chooses and
    orders what comes back: dicts, dataclasses, tuples and lists, within each other too, are taken
    apart, and their tensors called by keys, fields or places. None is left out.
    """

    def __init__(
        self, module: torch.nn.Module, keywords: Sequence[str] = (), outputs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.keywords = tuple(keywords)
        self.outputs = tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of `outputs`, or all there are."""
        found = self.named(*tensors)
        return tuple(found[name] for name in self.outputs or found)

    def named(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor that comes back, by name.

        Raises:
            SpecError: something else than tensors comes back.
        """
        if self.keywords:
            answer = self.module(**dict(zip(self.keywords, tensors, strict=True)))
        else:
            answer = self.module(*tensors)
        found: dict[str, torch.Tensor] = {}
        _take_apart(answer, "", found)
        return found


def _take_apart(answer: Any, name: str, found: dict[str, torch.Tensor]) -> None:
    if isinstance(answer, torch.Tensor):
        found[name or "output"] = answer
    elif isinstance(answer, Mapping):
        for key, value in answer.items():
            _take_apart(value, f"{name}_{key}" if name else str(key), found)
    elif dataclasses.is_dataclass(answer):
        for field in dataclasses.fields(answer):
            inner = f"{name}_{field.name}" if name else field.name
            _take_apart(getattr(answer, field.name), inner, found)
    elif isinstance(answer, (tuple, list)):
        fields = getattr(answer, "_fields", None)
        for place, value in enumerate(answer):
            inner = fields[place] if fields else (str(place) if name else f"output_{place}")
            first = "output" if not fields and not name and place == 0 else inner
            _take_apart(value, f"{name}_{inner}" if name else first, found)
    elif answer is not None:
        raise SpecError(
            "tensors from the network, in a tuple, dict or dataclass if several",
            got=f"{type(answer).__name__} {name}".strip(),
            fix="return tensors only: torch.as_tensor makes one of a number that depends on inputs",
        )


def parameters_of(module: torch.nn.Module) -> tuple[list[str], bool]:
    """Names that `forward` must be given, and whether they are all it may be given."""
    needed = []
    known = True
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            known = False
        elif parameter.default is parameter.empty:
            needed.append(name)
    return needed, known


def keywords_for(module: torch.nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The names to call `forward` with; empty, for by position, where they are not its own."""
    own = inspect.signature(module.forward).parameters
    called = {n for n, p in own.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return tuple(names) if set(names) <= called else ()


def asking(network: torch.nn.Module, names: Sequence[str]) -> Ask:
    """The network as a function of arrays; whatever it raises is a `SpecError` with the place.

    Without `names` the outputs are called as a `Flat` calls them.
    """

    def ask(inputs: Tensors) -> dict[str, np.ndarray]:
        try:
            with torch.inference_mode():
                tensors = [tensor_of(array) for array in inputs.values()]
                if not names and isinstance(network, Flat):
                    found = network.named(*tensors)
                else:
                    answer = network(*tensors)
                    answers = answer if isinstance(answer, tuple) else (answer,)
                    found = dict(zip(names, answers, strict=True))
        except Exception as error:  # a network of somebody's own raises anything
            raise refusal(error, inputs) from error
        for (name, array), tensor in zip(inputs.items(), tensors, strict=True):
            if not np.array_equal(array, tensor.numpy()):
                raise SpecError(
                    "a network that leaves its inputs as they are",
                    got=f"{name!r} is another after forward()",
                    fix="write x = x + 1 in place of x += 1, and clone() before methods that end "
                    "with an underscore",
                )
        return {name: _array(name, tensor) for name, tensor in found.items()}

    return ask


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor of a copy: networks may write into what they are given."""
    return torch.from_numpy(array.copy())


def refusal(error: Exception, inputs: Tensors) -> SpecError:
    """What a network raised when it was asked, as an error of three parts."""
    if isinstance(error, SpecError):
        return error
    shapes = ", ".join(f"{n} {a.dtype} {list(a.shape)}" for n, a in inputs.items())
    first = (str(error).strip().splitlines() or [""])[0]
    return SpecError(
        f"a network that answers {shapes}",
        got=f"{type(error).__name__}: {first}{place_of(error)}",
        fix="compare the declared inputs with what forward() takes",
    )


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16 or tensor.is_complex() or tensor.layout != torch.strided:
        raise SpecError(
            f"an output {name!r} of a dtype that a server can send",
            got=f"{tensor.dtype} ({tensor.layout})",
            fix="cast it in forward(), such as .float() or torch.view_as_real",
        )
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def vocabulary(network: torch.nn.Module, inputs: Tensors, name: str) -> int | None:
    """Rows of the one embedding that looks up the input `name`; None where there is no such one.

    `inputs` is any legal question; zeros stand for the ids.
    """
    asked = {key: tensor_of(array) for key, array in inputs.items()}
    ids = asked[name]
    sizes: set[int] = set()

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].data_ptr() == ids.data_ptr():
            sizes.add(int(cast(Any, module).num_embeddings))

    hooks = [
        module.register_forward_pre_hook(note)
        for module in network.modules()
        if isinstance(module, torch.nn.Embedding)
    ]
    try:
        with torch.inference_mode():
            network(*asked.values())
    except Exception:  # what it says is told when it is really asked
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return sizes.pop() if len(sizes) == 1 else None


def row_specs(arrays: Tensors, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Inputs as samples show them: the first axis free, the others as they are."""
    return tuple(
        TensorSpec(
            name=name, dtype=arrays[name].dtype.name, shape=("batch", *arrays[name].shape[1:])
        )
        for name in names
    )
