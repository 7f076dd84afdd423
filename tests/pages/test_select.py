"""The page of a comparison is whole, loads nothing, and hides no name."""

from __future__ import annotations

import itertools
import re

import pytest
from select_reports import report, row

from tlexport.pages import select as page

COMMAND = ["tlexport", "select", "my photos", "--report", "select.html"]


FOUR = (
    row("timm/big", 0.9, 20.0),
    row("timm/other_big", 0.9, 20.5, front_latency=False),
    row("timm/middle=package:some-weights", 0.8, 8.0, notes=("a note of it",)),
    row("timm/small", 0.7, 2.0),
)


def test_it_is_one_file_that_loads_nothing():
    text = page.page(report(*FOUR), COMMAND)
    assert text.lstrip().startswith("<!doctype html>")
    assert not re.search(r"(src|href|url|@import|fetch|<script|<link|<img)\s*[=(]", text.lower())
    assert "prefers-color-scheme: dark" in text


def test_everything_that_was_found_is_on_it():
    text = page.page(report(*FOUR, skipped=("a/b.png: cut off",)), COMMAND)
    for told in (
        "tlexport train &#39;my photos&#39; -o my_photos.bundle",
        "tlexport select &#39;my photos&#39; --report select.html",
        "no &lt;hub&gt; &amp; no file",
        "a note of it",
        "a/b.png: cut off",
        "200 of 1000 examples",
        "5 folds",
        "-0.100 (-0.150 .. -0.050)",
        "timm/middle=package:some-weights",
    ):
        assert told in text, told
    assert text.count("<circle") == 4
    assert len(re.findall(r'<tr class="chosen">', text)) == 1


def test_the_front_is_stairs_over_those_on_it():
    text = page.page(report(*FOUR), COMMAND)
    points = re.search(r'class="step" points="([^"]*)"', text)[1].split()
    places = [tuple(map(float, point.split(","))) for point in points]
    assert len(places) == 5
    for (x, y), (next_x, next_y) in itertools.pairwise(places):
        assert next_x >= x
        assert next_y <= y
        assert x == next_x or y == next_y


@pytest.mark.parametrize("count", [1, 2, 6])
def test_names_do_not_lie_on_each_other_nor_beyond_the_edge(count):
    same = [row(f"timm/a_rather_long_name_{n}", 0.9, 5.0 + n / 10) for n in range(count)]
    chart = page._chart(report(*same))
    for place, one in enumerate(chart["labels"]):
        assert one["from"] >= 0
        assert one["to"] <= chart["width"]
        for other in chart["labels"][place + 1 :]:
            assert not page._meet(one, other)


def test_a_comparison_without_a_choice_has_a_page_too():
    found = report(*FOUR, chosen="", command="", nearest="timm/small with 2 ms", folds=1)
    text = page.page(found, COMMAND)
    assert "nearest: timm/small with 2 ms" in text
    assert "val/ held out" in text
    assert 'class="chosen"' not in text


def test_it_is_written_whole(tmp_path):
    (tmp_path / "s.html").write_text("old")
    page.write(report(row("a/one", 1.0, 3.0)), tmp_path / "s.html", COMMAND)
    assert "a/one" in (tmp_path / "s.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["s.html"]
