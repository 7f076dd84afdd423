"""What may go wrong around a repository and a server: nothing is lost, nothing half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import bundles
from serving.processes import until
from serving.traffic import Traffic

from tlexport.errors import BundleError
from tlexport.files import cache_folder
from tlexport.options import ServeOptions
from tlexport.serving import choice, config, repository, runtime_folder
from tlexport.stages.package import package

NARROW = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tlexport.cli import main
from tlexport.serving import staging
real = staging.locked
def locked(*arguments):  # the trial of the load rules, elsewhere, is over by then
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return real(*arguments)
staging.locked = locked
main(["package", {bundle!r}, "-r", {place!r}])
"""
"""A process that may write no file of more than 2000 bytes: the system refuses as for a disk that
is full, in the middle of a file."""


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_while_packaging_leaves_all_as_it_was(tmp_path, there):
    bundle = bundles.make(tmp_path / "b.bundle")
    place = tmp_path / "models"
    if there:
        package(bundle, place)
    before = contents(tmp_path)
    code = NARROW.format(bundle=str(bundle.root), place=str(place))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 8, ran.stderr
    assert f"to write the repository {str(place)!r}" in ran.stderr
    assert "File too large" in ran.stderr
    assert "free space" in ran.stderr
    after = contents(tmp_path)
    after.pop("models/.tlexport.lock", None)
    before.pop("models/.tlexport.lock", None)
    assert after == before
    assert not list(tmp_path.rglob(".tlexport-staging-*"))
    assert package(bundle, place).version == 1 + there


def test_a_cache_that_cannot_be_written_and_holds_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("TLEXPORT_CACHE", "/proc/tlexport")
    with pytest.raises(BundleError, match="to write '/proc/tlexport") as caught:
        runtime_folder.runtime_folder()
    assert "set TLEXPORT_CACHE to a folder" in caught.value.fix


def test_a_cache_that_cannot_be_written_serves_what_it_holds(tmp_path, monkeypatch):
    runtime = runtime_folder.runtime_folder().root
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / runtime.name).symlink_to(runtime)
    (cache / "servers").symlink_to("/proc/tlexport")  # root may write anywhere else
    monkeypatch.setenv("TLEXPORT_CACHE", str(cache))
    assert cache_folder() == cache
    package(bundles.make(tmp_path / "b.bundle"), tmp_path / "models")
    server, ready = choice.start("embedded", tmp_path / "models", ServeOptions())
    try:
        assert [model["name"] for model in ready] == ["insects"]
        assert server.log.parent.parent == Path("/tmp")
    finally:
        server.stop()
    assert not server.log.parent.exists()


def test_a_repository_that_changes_under_a_polling_server(tmp_path):
    place = tmp_path / "models"
    for seed in range(2):
        package(bundles.make(tmp_path / f"{seed}.bundle", seed=seed), place)
    path = place / "insects/config.pbtxt"
    whole = path.read_text()
    server, _ = choice.start("embedded", place, ServeOptions(control="poll"))
    try:
        with Traffic(server.grpc, server.http, bundles.images(1), lambda *_: True) as traffic:
            write(path, "max_batch_size: { half")
            until(lambda: "Poll failed" in server.text(), 30)
            write(path, whole)
            shutil.rmtree(place / "insects/1")  # not in service
            (place / "insects/notes").mkdir()
            time.sleep(2.5)
            package(bundles.make(tmp_path / "2.bundle", seed=2), place)
            until(lambda: 3 in traffic.versions, 30)
    finally:
        server.stop()
    assert traffic.failures == []
    assert traffic.versions == {2, 3}
    assert repository.versions(place / "insects") == [2, 3]
    assert set(config.digests_of(config.parse(path))) == {"2", "3"}


def write(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text)
    half.replace(path)
