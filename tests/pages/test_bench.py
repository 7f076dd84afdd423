"""The page of a benchmark, looked at in a real browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from bench_reports import everything, report, row
from PIL import Image

from tlexport.errors import OptionError
from tlexport.pages import bench as page
from tlexport.pages import hold_place

COMMAND = ["tlexport", "bench", "a b.bundle", "--batch", "1"]
SHADES = {"light": "1", "dark": "0"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "bench.html"
    page.write(everything(), path, COMMAND)
    return path


@pytest.fixture(scope="module")
def browse():
    """Chromium without a window: (url, flags) -> what it prints."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("looking at the page needs Debian's chromium")

    def call(profile, url, *flags):
        quiet = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=2000"),
        )
        done = subprocess.run(
            [program, *quiet, *flags, url], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    return call


def test_it_is_one_file_that_loads_nothing(written):
    text = written.read_text()
    assert not re.search(r"(src|href|url|@import|fetch|<script|<link|<img)\s*[=(]?", text.lower())
    assert "http://some-long-host-name.example" in text  # a runtime's name, which nobody opens


def test_everything_that_was_found_is_on_it(written):
    text = written.read_text()
    for told in (
        "tlexport bench &#39;a b.bundle&#39; --batch 1",
        "1 of 6 rows not stable",
        "3 failed",
        "INVALID",
        "Early stopping not satisfied",
        "a card",
        "1.67x",
        "batch 8, 1 in flight",
        "too slow",
        "wire 0.16",
        "d" * 64,
    ):
        assert told in text, told
    assert "cat" not in re.sub(r"locat|dicat", "", text)  # labels are not for this page
    assert text.count("<polyline") >= 5
    assert text.count("<circle") == 6


@pytest.mark.parametrize("shade", sorted(SHADES))
@pytest.mark.parametrize("width", [1100, 390])
def test_it_is_readable_in_a_browser(written, browse, tmp_path, shade, width):
    picture = tmp_path / "page.png"
    browse(
        tmp_path / "profile",
        written.as_uri(),
        f"--blink-settings=preferredColorScheme={SHADES[shade]}",
        f"--window-size={max(width, 500)},2400",
        f"--screenshot={picture}",
    )
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    assert pixels.shape[0] == 2400
    ground = np.median(pixels)
    assert ground > 230 if shade == "light" else ground < 40
    written_on = np.abs(pixels - ground) > 90  # text and lines stand out
    assert 0.005 < written_on.mean() < 0.3


def test_on_a_phone_nothing_sticks_out(written, browse, tmp_path):
    """A frame of 360 pixels, because Chromium's own windows are not that narrow."""
    frame = tmp_path / "phone.html"
    inside = written.read_text().replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<iframe id="f" width="360" height="800" srcdoc="{inside}"></iframe><p id="told"></p>'
        "<script>document.getElementById('f').onload = () => {"
        "const d = document.getElementById('f').contentDocument;"
        "const wide = [...d.querySelectorAll('svg, p, h1, h2, pre, dl, .bar')]"
        ".filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.tagName);"
        "const small = [...d.querySelectorAll('svg text')]"
        ".filter(e => e.getBoundingClientRect().height < 10).length;"
        "document.getElementById('told').textContent = "
        "`scroll ${d.documentElement.scrollWidth} wide [${wide}] small ${small}`;};</script>"
    )
    dom = browse(tmp_path / "profile", frame.as_uri(), "--dump-dom")
    told = re.search(r'<p id="told">(.*?)</p>', dom)[1]
    scroll = int(re.search(r"scroll (\d+)", told)[1])
    assert scroll <= 360, told
    assert "wide []" in told
    assert "small 0" in told


def test_a_report_with_little_in_it_has_a_page_too():
    bare = row(p50_ms=None, p90_ms=None, p95_ms=None, p99_ms=None, quantiles_ms=(), spent=None)
    text = page.page(report(bare), COMMAND)
    assert "<svg" not in text
    assert "ort@cpu" in text


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="a place for the page"):
        hold_place(tmp_path / "file" / "bench.html")
    hold_place(tmp_path / "bench.html")
    assert not (tmp_path / "bench.html").exists()


def test_it_is_written_whole(tmp_path):
    place = tmp_path / "bench.html"
    place.write_text("old")
    page.write(report(), place, COMMAND)
    assert place.read_text().lstrip().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["bench.html"]
