"""From fine-tuned to served, with the proof and the price.

The verbs are functions of the same name as the commands:

    tlexport.run(data, output)             the whole job
    tlexport.select(data)                  pre-trained networks compared on your examples
    tlexport.train(data, output)           labelled examples -> bundle
    tlexport.import_model(output, options) a model you already have -> bundle
    tlexport.evaluate(bundle, data)        how often a runtime is right
    tlexport.export(bundle)                bundle -> artifact
    tlexport.verify(bundle)                two runtimes asked the same
    tlexport.package(bundle, repository)   artifact -> Triton model repository
    tlexport.lint(repository)              the server's load rules, without a server
    tlexport.serve(repository)             repository -> ready server
    tlexport.predict(source, files)        raw files -> labels
    tlexport.bench(bundle)                 runtimes asked many times
    tlexport.tune(bundle)                  the settings that serve most within a latency
    tlexport.manifests(repository, options) what runs it on many machines
    tlexport.list_backbones(pattern)       what can be loaded
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "run": "tlexport.pipeline",
    "select": "tlexport.stages.select",
    "train": "tlexport.stages.train",
    "import_model": "tlexport.stages.import_",
    "evaluate": "tlexport.stages.evaluate",
    "export": "tlexport.stages.export",
    "verify": "tlexport.stages.verify",
    "package": "tlexport.stages.package",
    "lint": "tlexport.stages.lint",
    "serve": "tlexport.stages.serve",
    "predict": "tlexport.stages.predict",
    "bench": "tlexport.stages.bench",
    "tune": "tlexport.stages.tune",
    "manifests": "tlexport.stages.manifests",
    "list_backbones": "tlexport.stages.backbones",
    "Bundle": "tlexport.bundle",
}
"""Public name -> module; imported when first used, so that `import tlexport` stays cheap."""

__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
