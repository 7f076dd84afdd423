"""Whether features can be learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tlexport.errors import DataError
from tlexport.tasks import Example

LISTED = 20

LEAST_SPREAD = 1e-4
"""Below it a head would multiply rounding errors (1e-7 of the features' size) until they show."""


def hold_readable(examples: Sequence[Example], broken: Mapping[int, str]) -> None:
    """Refuse examples of which some could not be read; `broken` maps rows to reasons.

    Raises:
        DataError: there are any; the first twenty are listed.
    """
    if not broken:
        return
    lines = [f"{examples[row].source}: {why}" for row, why in list(broken.items())[:LISTED]]
    more = len(broken) - len(lines)
    raise DataError(
        "files that can be read",
        got=f"{len(broken)} broken of {len(examples)}:\n    "
        + "\n    ".join(lines + ([f"... and {more} more"] if more else [])),
        fix="mend or remove them, or pass --skip-broken to leave them out (what is done so far "
        "is kept)",
    )


def hold_finite(examples: Sequence[Example], values: np.ndarray, kept: np.ndarray) -> None:
    """Refuse features, float32 [examples, width], with NaN or infinity in a row that is `kept`.

    Raises:
        DataError: there are such rows.
    """
    wild = ~np.isfinite(values).all(axis=1) & kept
    if wild.any():
        raise DataError(
            "finite features from the backbone",
            got=f"NaN or infinity for {int(wild.sum())} files, such as "
            f"{examples[int(wild.argmax())].source}",
            fix="the weights are damaged or of another network: check --weights",
        )


def hold_apart(values: np.ndarray) -> None:
    """Refuse features, float32 [examples, width], that are nearly the same for all examples.

    Raises:
        DataError: they vary by less than `LEAST_SPREAD` of their size.
    """
    size = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    spread = float(np.sqrt(values.var(axis=0, dtype=np.float64).mean()))
    if spread <= LEAST_SPREAD * size:
        raise DataError(
            "features that differ from example to example",
            got=f"they vary by {spread / size if size else 0:.1g} of their size, as rounding does",
            fix="untrained or damaged weights are the usual cause, or inputs that are all alike: "
            "check --weights and the data",
        )
