"""eager@cpu, eager@cuda:N, eager@cpu-float64: PyTorch."""

from __future__ import annotations

from tlexport.bundle import Bundle
from tlexport.options import RuntimeOptions
from tlexport.runtimes._network import Network, of_bundle


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> Network:
    """Open the network of a bundle on "cpu", "cuda:N", or "cpu-" and an arithmetic.

    Raises:
        OptionError: no bundle, another device, or more instances than threads.
        MissingDependency: a GPU is asked for and PyTorch sees none.
        BundleError: the weights changed since the bundle was made.
    """
    name = f"eager@{where}"
    return Network(of_bundle(bundle, name), name, options)
