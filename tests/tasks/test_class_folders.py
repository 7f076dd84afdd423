"""Folders of labelled files, as people keep them."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from tlexport.errors import DataError
from tlexport.tasks import _class_folders

SUFFIXES = {".png", ".jpg"}


def make(root: Path, *files: str) -> Path:
    """Write small files, each with a content of its own."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def read(root: Path, known: tuple[str, ...] = ()):
    return _class_folders.read(root, _class_folders.Kind(suffixes=SUFFIXES, name="images"), known)


def names(examples) -> list[str]:
    return [example.source.name for example in examples]


def test_a_folder_per_class_sorted(tmp_path):
    found = read(make(tmp_path, "dog/2.png", "cat/1.png", "dog/1.JPG", "cat/deep/er/3.png"))
    assert found.labels == ("cat", "dog")
    assert [(e.source.name, e.label) for e in found.train] == [
        ("1.png", 0),
        ("3.png", 0),
        ("1.JPG", 1),
        ("2.png", 1),
    ]
    assert found.val == ()
    assert found.notes == ()
    assert len({e.digest for e in found.train}) == 4


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_and_val_above_the_classes(tmp_path, val):
    make(tmp_path, "train/a/1.png", "train/b/2.png", f"{val}/b/3.png", "test/a/4.png")
    found = read(tmp_path)
    assert found.labels == ("a", "b")
    assert names(found.train) == ["1.png", "2.png"]
    assert [(e.source.name, e.label) for e in found.val] == [("3.png", 1)]
    assert found.notes == ("left alone: test",)


def test_train_alone_is_gone_into_and_test_is_left_with_a_note(tmp_path):
    assert read(make(tmp_path / "x", "train/a/1.png", "train/b/2.png")).labels == ("a", "b")
    make(tmp_path / "y", "train/a/1.png", "train/b/2.png", "test/a/3.png")
    found = read(tmp_path / "y")
    assert names(found.train) == ["1.png", "2.png"]
    assert "tlexport evaluate" in found.notes[0]


def test_a_class_may_be_called_train(tmp_path):
    assert read(make(tmp_path, "train/1.png", "plane/2.png")).labels == ("plane", "train")


def test_hidden_files_and_what_macs_leave_are_left_out_silently(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", "a/.3.png", ".git/4.png", "a/.thumbs/5.png")
    make(tmp_path, "__MACOSX/a/6.png", "a/__MACOSX/7.png", "a/.DS_Store")
    found = read(tmp_path)
    assert names(found.train) == ["1.png", "2.png"]
    assert found.notes == ()


def test_other_files_are_counted_and_named(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", *(f"a/{n}.txt" for n in range(7)))
    assert read(tmp_path).notes == (
        "7 files are not images by name and were left: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt ...",
    )


def test_an_empty_class_is_refused_and_named(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png", "d/readme.txt")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="images in every class folder") as caught:
        read(tmp_path)
    assert caught.value.got == "none in c, d"


@pytest.mark.parametrize(
    ("files", "got"),
    [
        (["a/1.png"], "the one class 'a'"),
        (["a/1.png", "2.png", "3.png"], "the one class 'a', and 2 images beside them"),
        (["1.png", "2.jpg", "x.txt"], "no class folders, and 2 images beside them"),
        ([], "no class folders"),
    ],
)
def test_fewer_than_two_classes_are_refused(tmp_path, files, got):
    with pytest.raises(DataError, match="at least two class folders") as caught:
        read(make(tmp_path, *files))
    assert caught.value.got == got
    assert caught.value.fix == _class_folders.LAYOUT


def test_no_folder_is_refused(tmp_path):
    make(tmp_path, "file.png")
    for name, got in (("none", "nothing there"), ("file.png", "a file")):
        with pytest.raises(DataError, match="with a sub-folder per class") as caught:
            read(tmp_path / name)
        assert caught.value.got == got


def test_a_class_in_val_alone_is_refused(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/z/4.png")
    with pytest.raises(DataError, match="only classes that train/ has") as caught:
        read(tmp_path)
    assert caught.value.got == "z in val/ alone"


def test_an_empty_val_is_refused(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="val"):
        read(tmp_path)


def test_links_to_files_and_folders_are_followed_and_a_circle_ends(tmp_path):
    make(tmp_path / "elsewhere", "1.png", "more/2.png")
    make(tmp_path / "data", "b/3.png")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "4.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data" / "b" / "sub").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "data" / "b" / "circle").symlink_to(tmp_path / "data" / "b")
    found = read(tmp_path / "data")
    assert [(e.source.name, e.label) for e in found.train] == [
        ("1.png", 0),
        ("2.png", 0),
        ("3.png", 1),
        ("4.png", 1),
        ("2.png", 1),
    ]


def test_a_dangling_link_is_kept_to_be_told_of_when_it_is_loaded(tmp_path):
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = read(tmp_path)
    assert names(found.train) == ["1.png", "2.png", "gone.png"]
    assert found.train[2].digest.startswith("unreadable:")


@pytest.mark.parametrize(
    "name", ["straße", "日本", "a b", "it's", "100%", "-rf", "a,b", "$HOME", "a;b"]
)
def test_odd_class_and_file_names_are_taken(tmp_path, name):
    found = read(make(tmp_path, f"{name}/{name}.png", "other/2.png"))
    assert name in found.labels
    assert f"{name}.png" in names(found.train)


@pytest.mark.parametrize("name", ["two\nlines", "tab\there", "bell\a", os.fsdecode(b"caf\xe9")])
def test_class_names_that_no_list_of_labels_can_hold_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="printable names") as caught:
        read(make(tmp_path, f"{name}/1.png", "other/2.png"))
    assert repr(name) in caught.value.got


def test_with_known_labels_some_of_the_folders_are_enough(tmp_path):
    make(tmp_path, "dog/1.png", "cat/2.png")
    found = read(tmp_path, ("ant", "cat", "dog"))
    assert found.labels == ("ant", "cat", "dog")
    assert [(e.source.name, e.label) for e in found.train] == [("2.png", 1), ("1.png", 2)]


def test_with_known_labels_val_is_read_and_train_is_not(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png")
    assert names(read(tmp_path, ("a", "b")).train) == ["3.png"]


def test_with_known_labels_a_strange_folder_is_refused(tmp_path):
    make(tmp_path, "a/1.png", "horse/2.png")
    with pytest.raises(DataError, match="the model's labels") as caught:
        read(tmp_path, ("a", "b"))
    assert caught.value.got == "folders horse"


@pytest.fixture
def locked():
    """A class folder that this process, no longer root, may not read."""
    with tempfile.TemporaryDirectory(prefix="tlexport-tests-") as name:
        root = make(Path(name), "a/1.png", "b/2.png", "b/sub/3.png", "b/4.png")
        root.chmod(0o755)
        (root / "b" / "sub").chmod(0)
        (root / "b" / "4.png").chmod(0)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield root
        finally:
            if was_root:
                os.seteuid(0)
            (root / "b" / "sub").chmod(0o755)


def test_a_folder_that_cannot_be_read_is_told_and_not_left_out(locked):
    with pytest.raises(DataError, match="a readable folder") as caught:
        read(locked)
    assert "sub" in caught.value.expected
    assert caught.value.got == "Permission denied"


def test_a_file_that_cannot_be_read_is_kept_to_be_told_of(locked):
    if os.geteuid() == 65534:
        os.seteuid(0)
        (locked / "b" / "sub").chmod(0o755)
        os.seteuid(65534)
    else:
        (locked / "b" / "sub").chmod(0o755)
    found = read(locked)
    assert [e.source.name for e in found.train if e.digest.startswith("unreadable:")] == ["4.png"]


def test_twenty_thousand_files_take_seconds(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(10_000):
            (tmp_path / label / f"{number}.png").write_bytes(b"%d%s" % (number, label.encode()))
    start = time.perf_counter()
    found = read(tmp_path)
    took = time.perf_counter() - start
    assert len(found.train) == 20_000
    assert len({e.digest for e in found.train}) == 20_000
    assert took < 30, f"{took:.1f} s"
