"""compile@cpu, compile@cuda:N: PyTorch with torch.compile."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tlexport.bundle import Bundle
from tlexport.errors import ExportError, MissingDependency, OptionError
from tlexport.options import RuntimeOptions
from tlexport.runtimes._network import Network, of_bundle
from tlexport.spec import Tensors

BACKEND = "inductor"
COMPILERS = ("c++", "g++", "clang++")


class Compiled(Network):
    """The network as inductor compiles it, when a batch size is first asked; a graph for each."""

    def __init__(self, bundle: Bundle, name: str, options: RuntimeOptions) -> None:
        compiled = functools.partial(torch.compile, dynamic=False, backend=BACKEND)
        super().__init__(bundle, name, options, compiled)

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Answer: rows in, rows out, in order; the first of a size compiles.

        Raises:
            SpecError: the inputs are not the declared ones, or the network cannot take them.
            OptionError: the batch does not fit into the device's memory, or it is closed.
            ExportError: it cannot be compiled.
        """
        try:
            return super().__call__(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ExportError(
                "a network that torch.compile can compile",
                got=str(error).strip().split("\n", 1)[0],
                fix="use eager@ in its place; `tlexport --debug` shows what inductor says",
            ) from error

    def facts(self) -> Mapping[str, Any]:
        """What eager tells, and who compiled."""
        return {**super().facts(), "compiled": f"{BACKEND}, a graph per batch size"}


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> Compiled:
    """Open the network of a bundle on "cpu" or "cuda:N", to be compiled when it is asked.

    Raises:
        OptionError: no bundle, another device, or more instances than threads.
        MissingDependency: a GPU is asked for and PyTorch sees none; on a CPU, no C++ compiler.
        BundleError: the weights changed since the bundle was made.
    """
    name = f"compile@{where}"
    if where.startswith("cpu-"):
        raise OptionError("compile@cpu or compile@cuda:N", got=name, fix="name one of these")
    if where == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise MissingDependency(
            f"a C++ compiler for {name}",
            got="none of " + ", ".join(COMPILERS),
            fix="install one (apt-get install g++), or use eager@cpu",
        )
    return Compiled(of_bundle(bundle, name), name, options)
