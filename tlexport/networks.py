"""The original network of a bundle, built again."""

from __future__ import annotations

import torch

from tlexport import plugins
from tlexport.bundle import Bundle


def network(bundle: Bundle) -> torch.nn.Module:
    """The network of a bundle, with its weights, in eval mode.

    A model that was trained here is built by its task, an imported one by its importer
    (`Manifest.network["importer"]`).

    Raises:
        BundleError: the weights are not the ones the bundle was made with, or not of the network
            that it names.
        OptionError: the bundle holds no such network, as one made from an ONNX file.
    """
    importer = bundle.manifest.network.get("importer")
    room, name = ("importers", importer) if importer else ("tasks", bundle.spec.task)
    built: torch.nn.Module = plugins.load(room, name).network(bundle)
    return built.eval()
