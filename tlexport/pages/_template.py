"""What all pages share: their frame and round ticks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).parent


def filled(template: str, **values: Any) -> str:
    """A template of this folder with its values in it; a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten from `low` to `high`, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]
