"""Networks are exported beside this process, or here where that cannot be."""

from __future__ import annotations

import pytest
import small_bundles

from tlexport import child
from tlexport.bundle import Bundle
from tlexport.errors import OptionError
from tlexport.stages import _beside


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """One whose task only this process knows."""
    small_bundles.plug_task(monkeypatch)
    return Bundle(small_bundles.make(tmp_path / "small"))


def test_a_refusal_there_is_raised_here(bundle, tmp_path):
    with _beside.exporter(2, tmp_path) as begin:
        for waiting in [begin(bundle) for _ in range(2)]:
            with pytest.raises(OptionError, match="no task called"):
                waiting()


def test_where_the_process_dies_it_is_done_here(bundle, tmp_path, monkeypatch):
    start = child.start
    monkeypatch.setattr(child, "start", lambda module: start("tlexport.progress"))  # ends at once
    with _beside.exporter(2, tmp_path) as begin:
        for waiting in [begin(bundle) for _ in range(2)]:
            artifact, folder, _ = waiting()
            assert (folder / artifact.file).is_file()


def test_a_fault_there_is_raised_here_and_shown_once(bundle, tmp_path, capfd):
    with _beside.exporter(2, tmp_path / "gone") as begin, pytest.raises(FileNotFoundError):
        begin(bundle)()
    assert capfd.readouterr().err == ""


def test_a_single_one_needs_no_process(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "start", lambda module: pytest.fail("started one"))
    with _beside.exporter(1, tmp_path) as begin:
        artifact, folder, _ = begin(bundle)()
    assert (folder / artifact.file).is_file()
