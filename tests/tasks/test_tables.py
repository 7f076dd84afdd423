from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tlexport.errors import DataError
from tlexport.options import DataOptions
from tlexport.tasks import _tables

ROWS = [
    ("a good film", "pos"),
    ("a bad film", "neg"),
    ("", "neg"),
    ('quoted "words", and a\nline', "pos"),
    ("nul \0 byte", "neg"),
    ("\U0001f600 שלום", "pos"),
    ("long " * 20_000, "neg"),
]


def write(path: Path, rows=ROWS, names=("text", "label")) -> Path:
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, csv.excel_tab if suffix == ".tsv" else csv.excel)
            table.writerow(names)
            table.writerows(rows)
    elif suffix == ".parquet":
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        pyarrow.parquet.write_table(pa.table(columns), path)
    else:
        lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def texts(examples) -> list[str]:
    return [example.source.read_bytes().decode() for example in examples]


@pytest.mark.parametrize("suffix", _tables.SUFFIXES)
def test_every_format_gives_every_text_and_label(suffix: str, tmp_path: Path):
    found = _tables.read(write(tmp_path / f"t{suffix}"), DataOptions())
    assert found.labels == ("neg", "pos")
    assert texts(found.train) == [text for text, _ in ROWS]
    assert [found.labels[example.label] for example in found.train] == [row[1] for row in ROWS]
    assert [example.size for example in found.train] == [len(text.encode()) for text, _ in ROWS]
    assert str(found.train[3].source).endswith(f"t{suffix} row 4")
    assert found.train[3].source.name == "row-4.txt"


def test_equal_texts_have_equal_digests(tmp_path: Path):
    rows = [("same", "a"), ("other", "b"), ("same", "a"), ("x", "b")]
    digests = [e.digest for e in _tables.read(write(tmp_path / "t.csv", rows), DataOptions()).train]
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3


def test_an_edited_table_is_read_again(tmp_path: Path):
    place = write(tmp_path / "t.csv", [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")])
    assert texts(_tables.read(place, DataOptions()).train)[0] == "one"
    write(place, [("ONE", "a"), ("two", "b"), ("three", "a"), ("four", "b")])
    assert texts(_tables.read(place, DataOptions()).train)[0] == "ONE"


def test_columns_are_named_or_guessed(tmp_path: Path):
    rows = [("a", "1", "x"), ("b", "0", "y"), ("c", "1", "x"), ("d", "0", "y")]
    place = write(tmp_path / "t.csv", rows, ("Review", "stars", "Sentiment"))
    assert _tables.read(place, DataOptions()).labels == ("x", "y")
    assert _tables.read(place, DataOptions(label_column="stars")).labels == ("0", "1")
    with pytest.raises(DataError, match="a column 'star'") as caught:
        _tables.read(place, DataOptions(label_column="star"))
    assert "'Review', 'stars', 'Sentiment'" in caught.value.got
    assert "--label-column" in caught.value.fix


def test_whole_numbers_are_labels_in_their_own_order(tmp_path: Path):
    rows = [(f"t{n}", label) for n, label in enumerate([10, 2, -1, 10, 2, -1])]
    assert _tables.read(write(tmp_path / "t.jsonl", rows), DataOptions()).labels == (
        "-1",
        "2",
        "10",
    )
    rows = [(text, float(label)) for text, label in rows]
    assert _tables.read(write(tmp_path / "u.parquet", rows), DataOptions()).labels == (
        "-1",
        "2",
        "10",
    )


def test_a_folder_of_train_and_val_tables(tmp_path: Path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "validation.jsonl", ROWS[:2])
    assert _tables.found(tmp_path)
    found = _tables.read(tmp_path, DataOptions())
    assert len(found.train) == len(ROWS)
    assert texts(found.val) == [text for text, _ in ROWS[:2]]
    known = _tables.read(tmp_path, DataOptions(), ("neg", "other", "pos"))
    assert [example.label for example in known.train] == [2, 0]


def test_a_null_text_is_broken_and_named_by_its_row(tmp_path: Path):
    rows = [("a", "x"), (None, "y"), ("b", "x"), ("c", "y")]
    found = _tables.read(write(tmp_path / "t.jsonl", rows), DataOptions())
    with pytest.raises(OSError, match="no text"):
        found.train[1].source.read_bytes()


WRONG = {
    "fields": ("text,label\na,x\nb,y,z\n", r"3 in row 2 \(line 3\)"),
    "quote": ('text,label\na,x\n"b,y\n', r"unexpected end of data in row 2"),
    "label": ("text,label\na,x\nb,\n", r"'' in row 2"),
    "header": ("a good film,pos\na bad one,neg\n", r"the columns 'a good film', 'pos'"),
    "empty": ("", r"the columns  in"),
    "no rows": ("text,label\n", "none"),
    "one class": ("text,label\na,x\nb,x\n", r"1 different labels in 2 rows, such as 'x'"),
    "texts for labels": (
        "text,label\n" + "".join(f"t{n},l{n}\n" for n in range(9)),
        r"9 different",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_csv_is_told_by_its_row(name: str, tmp_path: Path):
    content, told = WRONG[name]
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=told):
        _tables.read(tmp_path / "t.csv", DataOptions())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "a"', "row 2"),
        ("[1, 2]", "a list in row 2"),
        ('{"text": "b"}', "None in row 2"),
        ('{"text": ["b"], "label": "y"}', "a list in row 2"),
        ('{"text": "b", "label": 1.5}', "1.5 in row 2"),
    ],
)
def test_a_wrong_line_of_json_is_told_by_its_row(line: str, told: str, tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(f'{{"text": "a", "label": "x"}}\n{line}\n')
    with pytest.raises(DataError, match=told):
        _tables.read(tmp_path / "t.jsonl", DataOptions())


def test_bytes_that_are_no_utf_8_and_no_parquet(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes("text,label\nnaïve,x\n".encode("latin-1"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(DataError, match="a table of"):
            _tables.read(tmp_path / name, DataOptions())


def test_a_label_that_the_model_lacks_is_told_by_its_row(tmp_path: Path):
    with pytest.raises(DataError, match="'pos' in row 1 of"):
        _tables.read(write(tmp_path / "t.csv"), DataOptions(), ("neg", "other"))


def test_texts_stay_on_disk(tmp_path: Path):
    """200,000 rows of 1,000 characters: the process grows by far less than their 200 MB."""
    with (tmp_path / "t.csv").open("w") as stream:
        stream.write("text,label\n")
        stream.writelines(f"{number} {'word ' * 200},{number % 3}\n" for number in range(200_000))
    code = """
        import datasets, pathlib, re, sys
        from tlexport.options import DataOptions
        from tlexport.tasks import _tables

        def own_mb():  # without mapped files, which the system takes back when it likes
            status = pathlib.Path("/proc/self/status").read_text()
            return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024

        before = own_mb()
        found = _tables.read(pathlib.Path(sys.argv[1]), DataOptions())
        assert len(found.train) == 200_000
        assert found.train[123_456].source.read_bytes().startswith(b"123456 word")
        print(own_mb() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "t.csv")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TLEXPORT_CACHE": str(tmp_path / "cache")},
    )
    assert float(done.stdout) < 120, done.stdout
