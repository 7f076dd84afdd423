from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tlexport.errors import MissingDependency, ServerError
from tlexport.serving import runtime_folder as module
from tlexport.serving.runtime_folder import runtime_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_two_builders_at_once_end_with_one_whole_folder(cache):
    with ThreadPoolExecutor(2) as pool:
        first, second = (f.result() for f in [pool.submit(runtime_folder) for _ in range(2)])
    assert first == second
    assert [path.name for path in cache.iterdir()] == [first.root.name]
    assert not (first.backends / "python/libtriton_python.so").is_symlink()
    assert first.stub.is_symlink()
    assert not (first.root / "wheels").exists()
    code = "import numpy, onnxruntime, sys; print(numpy.__version__, sys.prefix)"
    told = subprocess.run([first.python, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [module.PINS["numpy"], str(first.root / "env")]
    assert int(np.__version__.split(".")[0]) >= 1  # ours is untouched, whichever it is


def test_a_changed_backend_is_another_folder(cache, tmp_path, monkeypatch):
    before = module._key()
    shutil.copytree(module.BACKENDS, tmp_path / "backends")
    monkeypatch.setattr(module, "BACKENDS", tmp_path / "backends")
    assert module._key() == before
    with (tmp_path / "backends/onnxruntime/model.py").open("a") as stream:
        stream.write("# changed\n")
    assert module._key() != before


def test_another_wheel_is_refused(cache, tmp_path, monkeypatch):
    wheel = tmp_path / "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl"
    wheel.write_bytes(b"something else")
    monkeypatch.setenv("TLEXPORT_TRITON_WHEEL", str(wheel))
    with pytest.raises(ServerError, match="sha256") as caught:
        runtime_folder()
    assert str(wheel) in caught.value.got
    assert list(cache.iterdir()) == []


def test_no_index_to_fetch_from(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(MissingDependency, match="TLEXPORT_TRITON_WHEEL"):
        runtime_folder()


def test_an_environment_without_pip_borrows_one(tmp_path, monkeypatch):
    assert module._python_with_pip(tmp_path) == module.sys.executable
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {module.sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(bare))
    found = module._python_with_pip(tmp_path)
    assert found == str(tmp_path / "pip/bin/python")
    subprocess.run([found, "-m", "pip", "--version"], check=True, capture_output=True)


def test_a_server_environment_without_onnxruntime(monkeypatch, tmp_path):
    whole = runtime_folder()
    code = f'#!/bin/sh\nexec {whole.python} -S "$@"\n'
    (tmp_path / "env/bin").mkdir(parents=True)
    python = tmp_path / "env/bin/python3"
    python.write_text(code)
    python.chmod(0o755)
    with pytest.raises(ServerError, match="No module named 'numpy'"):
        module.check_environment(module.RuntimeFolder(root=tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.setattr(module.sys, "platform", "darwin"), "Linux on x86-64"),
        (lambda m: m.setattr(platform, "machine", lambda: "aarch64"), "Linux on x86-64"),
        (lambda m: m.setattr(platform, "libc_ver", lambda: ("glibc", "2.31")), "glibc 2.35"),
        (lambda m: m.setattr(platform, "libc_ver", lambda: ("", "")), "this is musl"),
        (lambda m: m.setattr(module, "PYTHONS", ()), "stubs for Python 3.11 and 3.12"),
        (lambda m: m.setattr(module.shutil, "which", lambda name: None), "bash"),
        (lambda m: m.setattr(module, "_libpython", lambda: "libnone.so"), "libnone.so"),
    ],
)
def test_where_it_cannot_run(monkeypatch, change, reason):
    assert module.unsupported() is None
    change(monkeypatch)
    assert reason in module.unsupported()
    with pytest.raises(ServerError, match="--server docker"):
        runtime_folder()


def test_the_environment_is_made_from_scratch(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("TLEXPORT_SETTING", "kept")
    environ = runtime_folder().environ()
    assert environ["TLEXPORT_SETTING"] == "kept"
    assert "PYTHONPATH" not in environ
    assert Path(environ["PATH"].split(":")[0], "python3").exists()


def test_a_folder_that_lost_a_part(cache):
    part = "backends/onnxruntime/model.py"
    whole = runtime_folder()
    (whole.root / part).unlink()
    with pytest.raises(ServerError, match=part) as caught:
        runtime_folder()
    assert "delete that folder" in caught.value.fix
    assert str(whole.root) in caught.value.expected
