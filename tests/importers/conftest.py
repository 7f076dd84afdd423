from __future__ import annotations

from pathlib import Path

import pytest

from tlexport.options import ImportOptions
from tlexport.stages.import_ import import_model


@pytest.fixture
def user_code(monkeypatch) -> None:
    """Work where the user's module lies."""
    monkeypatch.chdir(Path(__file__).parent)


@pytest.fixture
def take(tmp_path):
    """Import into a new bundle: its report."""

    def call(**options):
        options.setdefault("golden", 6)
        return import_model(tmp_path / "b", ImportOptions(force=True, **options))

    return call
