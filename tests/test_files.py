"""Whole files or none, whatever happens in the middle."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlexport import files
from tlexport.errors import BundleError
from tlexport.files import atomic_folder, sha256_of, sha256_of_json, write_atomic


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may read and not write, even where it started as root."""
    with tempfile.TemporaryDirectory(prefix="tlexport-tests-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "fixed"
        folder.mkdir()
        (folder / "old.txt").write_text("old")
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_equal_values_have_equal_digests_whatever_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": [1, 2]}) == sha256_of_json({"b": [1, 2], "a": 1})
    assert sha256_of_json([1, 2]) != sha256_of_json([2, 1])


def test_a_written_file_is_whole_readable_by_others_and_alone(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file.bin"]


def test_a_name_taken_by_a_folder_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(BundleError, match="to write") as caught:
        write_atomic(tmp_path / "taken", b"x")
    assert "directory" in caught.value.got.lower()
    assert names(tmp_path) == ["taken"]


def test_a_read_only_folder_is_refused(read_only):
    for write in (
        lambda: write_atomic(read_only / "new.txt", b"x"),
        lambda: write_atomic(read_only / "old.txt", b"x"),
        lambda: write_atomic(read_only / "deep" / "new.txt", b"x"),
        lambda: contextlib.ExitStack().enter_context(atomic_folder(read_only / "bundle")),
    ):
        with pytest.raises(BundleError, match="to write") as caught:
            write()
        assert "denied" in caught.value.got.lower()
        assert "you may write to" in caught.value.fix
    assert names(read_only) == ["old.txt"]
    assert (read_only / "old.txt").read_text() == "old"


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not (tmp_path / "new").exists()
        assert folder.parent == tmp_path, "a rename across file systems would not be atomic"
    assert (tmp_path / "new" / "sub" / "file").read_text() == "x"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755
    assert names(tmp_path) == ["new"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("x")
        _ = 1 / 0
    assert names(tmp_path) == []


def test_an_error_in_the_middle_of_replacing_leaves_the_old_one(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").write_text("old")
    with (
        pytest.raises(KeyboardInterrupt),
        atomic_folder(tmp_path / "it", replace=True) as folder,
    ):
        (folder / "new").write_text("new")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["it"]
    assert (tmp_path / "it" / "old").read_text() == "old"


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").write_text("old")
    with (
        pytest.raises(BundleError, match="exists already") as caught,
        atomic_folder(tmp_path / "it"),
    ):
        raise AssertionError("the block must not run")
    assert "--force" in caught.value.fix
    with atomic_folder(tmp_path / "it", replace=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "it") == ["new"]
    assert names(tmp_path) == ["it"]


def test_a_swap_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "it" and "old" not in self.parent.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(BundleError, match="No space left"),
        atomic_folder(tmp_path / "it", replace=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["it"]
    assert (tmp_path / "it" / "old").read_text() == "old"


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path):
    """The limit on file sizes makes a real write fail in the middle, as a full disk does."""
    code = """
        import resource, sys
        from pathlib import Path
        from tlexport.errors import BundleError
        from tlexport.files import write_atomic
        path = Path(sys.argv[1])
        write_atomic(path, b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            write_atomic(path, bytes(100_000))
        except BundleError as error:
            print(error.fix)
    """
    ran = python(code, str(tmp_path / "file"))
    assert "free space" in ran.stdout, ran.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("old", [False, True])
def test_kill_9_in_the_middle_leaves_the_old_folder_or_none(tmp_path, old):
    place = tmp_path / "it"
    if old:
        place.mkdir()
        (place / "file").write_text("old")
    code = """
        import sys, time
        from pathlib import Path
        from tlexport.files import atomic_folder
        with atomic_folder(Path(sys.argv[1]), replace=True) as folder:
            (folder / "file").write_text("new")
            print("writing", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(place)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (place / "file").read_text() == "old" if old else not place.exists()
    with atomic_folder(place, replace=old) as folder:  # and the same command works again
        (folder / "file").write_text("again")
    assert (place / "file").read_text() == "again"


def test_kill_9_while_files_are_replaced_over_and_over_leaves_a_whole_one(tmp_path):
    path = tmp_path / "file"
    code = """
        import sys
        from pathlib import Path
        from tlexport.files import write_atomic
        path = Path(sys.argv[1])
        for number in range(10**9):
            write_atomic(path, str(number % 10).encode() * 200_000)
            if number == 3:
                print("writing", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    written = path.read_bytes()
    assert len(written) == 200_000
    assert len(set(written)) == 1


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TLEXPORT_CACHE", str(tmp_path / "here"))
    assert files.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("TLEXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "tlexport"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "tlexport"


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("way", ["write_atomic", "atomic_folder", "scratch_folder"])
def test_a_signal_right_after_the_making_leaves_nothing(way, tmp_path, monkeypatch):
    def then_stopped(real):
        def made(path, *args, **kwargs):
            stream = real(path, *args, **kwargs)
            if not path.name.startswith("."):
                return stream
            if stream is not None:
                stream.close()
            raise KeyboardInterrupt

        return made

    target = tmp_path / "b"
    monkeypatch.setattr(Path, "mkdir", then_stopped(Path.mkdir))
    monkeypatch.setattr(Path, "open", then_stopped(Path.open))
    with pytest.raises(KeyboardInterrupt):
        if way == "write_atomic":
            write_atomic(target, b"new")
        elif way == "atomic_folder":
            with atomic_folder(target):
                raise AssertionError
        else:
            with files.scratch_folder(tmp_path, ".b."):
                raise AssertionError
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
