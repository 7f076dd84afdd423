"""golden@bundle: the stored answers to the golden samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError
from tlexport.options import RuntimeOptions
from tlexport.spec import Tensors, rows


class StoredAnswers:
    """Looks each input row up among the golden ones and answers with the outputs kept for it."""

    def __init__(self, bundle: Bundle) -> None:
        golden = bundle.golden()
        self.name = "golden@bundle"
        self.spec = bundle.spec
        self._outputs = golden.outputs
        self._digest = bundle.manifest.golden_sha256
        self._row_of: dict[bytes, int] = {}
        for row in range(len(golden.samples)):
            self._row_of.setdefault(self._key(golden.inputs, row), row)

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Answer: rows in, rows out, in order.

        Raises:
            SpecError: the inputs are not the declared ones.
            BundleError: a row is no golden sample.
        """
        self.spec.check(inputs)
        count = len(inputs[self.spec.inputs[0].name])
        found = [self._row_of.get(self._key(inputs, row)) for row in range(count)]
        known = [row for row in found if row is not None]
        if len(known) < count:
            raise BundleError(
                f"rows of the {len(self._row_of)} golden samples",
                got=f"another input in row {found.index(None)}",
                fix="ask golden@bundle only what the bundle's golden folder holds; eager@cpu "
                "answers anything",
            )
        return rows(self._outputs, np.array(known, dtype=int))

    def facts(self) -> Mapping[str, Any]:
        """Digest of the golden tensors."""
        return {"runtime": "golden", "golden_sha256": self._digest}

    def counters(self) -> Mapping[str, float]:
        """None: it runs in this process."""
        return {}

    def close(self) -> None:
        """Nothing to give back."""

    def _key(self, inputs: Tensors, row: int) -> bytes:
        return b"".join(
            np.ascontiguousarray(inputs[spec.name][row]).tobytes() for spec in self.spec.inputs
        )


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> StoredAnswers:
    """Open the golden samples of a bundle; `where` is "bundle".

    Raises:
        OptionError: no bundle, or another place.
        BundleError: the golden tensors changed since the bundle was made.
    """
    if bundle is None or where != "bundle":
        raise OptionError(
            "golden@bundle and a bundle",
            got=f"golden@{where}" + ("" if bundle else " without a bundle"),
            fix="write golden@bundle and name the bundle",
        )
    return StoredAnswers(bundle)
