import io

import bench_reports
import msgspec
import pytest
import small_bundles
from rich.console import Console

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.cli.bench import draw
from tlexport.environment import environment
from tlexport.measure import stats
from tlexport.reports import BenchReport, BenchRow, Interval
from tlexport.traffic import cells

QUICK = (
    "--rounds",
    "6",
    "--max-rounds",
    "6",
    "--round-s",
    "0.02",
    "--warmup",
    "1",
    "--threads",
    "1",
)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "SETTLE_S", 0.0)
    monkeypatch.setattr(stats, "BAND", 1e12)  # turns this short are never stable
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx())


def run(*args):
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return ended.value.code


def interval(value, low=None, high=None):
    return Interval(value=value, low=low or value * 0.9, high=high or value * 1.1)


def row(runtime, **changes):
    values = {
        "runtime": runtime,
        "batch": 1,
        "concurrency": 1,
        "requests": 400,
        "errors": 0,
        "p50_ms": interval(105.8),
        "p90_ms": interval(140.2),
        "p95_ms": interval(150.1),
        "p99_ms": interval(170.3),
        "items_per_s": interval(9.5),
        "speedup": interval(1.0, 1.0, 1.0),
        "different": False,
        "queue_ms": None,
        "compute_ms": None,
        "facts": {},
    }
    return BenchRow(**(values | changes))


def drawn(*rows):
    report = BenchReport(
        model="tiny",
        load="closed loop, 1 in flight",
        threads=2,
        instances=1,
        rounds=10,
        round_s=0.5,
        rows=rows,
        digests={"weights": "c" * 64, "onnx-fp32": "a" * 64},
        environment=environment(),
    )
    stream = io.StringIO()
    draw(report, Console(file=stream, highlight=False, width=80))
    return stream.getvalue()


def test_a_table_per_batch_size(bundle, capsys):
    args = ("--runtime", "eager@cpu", "--runtime", "ort@cpu", "--batch", "1", "--batch", "3")
    assert run("bench", bundle, *args, *QUICK) == 0
    out, err = capsys.readouterr()
    assert out.startswith("tiny: closed loop, 1 in flight, 1 threads, 6 rounds of 0.02 s")
    assert out.count("runtime ") == 2
    assert "batch 1" in out
    assert "batch 3" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert err == ""


def test_json_is_the_report_alone(bundle, capsys):
    assert run("bench", bundle, "--json", "--runtime", "ort@cpu", "--batch", "2", *QUICK) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=BenchReport)
    assert report == Bundle(bundle).report("bench", BenchReport)
    assert [(r.runtime, r.batch) for r in report.rows] == [("ort@cpu", 2)]


def test_wide_numbers_fit_into_80_columns():
    out = drawn(
        row("eager@cpu"),
        row(
            "triton@127.0.0.1:45678",
            items_per_s=interval(12345.6),
            speedup=interval(1.66, 1.61, 1.70),
            different=True,
        ),
    )
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "triton@127.0.0.1:45678" in out
    assert "1.66x" in out
    assert "1.61-1.70" in out
    assert "95.2-116" in out
    assert "-  too few" not in out
    assert "=  no significant" not in out


def test_a_long_name_breaks_after_its_kind():
    out = drawn(row("triton@http://127.0.0.1:45678"))
    assert [line.split()[0] for line in out.splitlines() if "triton" in line] == ["triton@"]
    assert "http://127.0.0.1:45678" in out


def test_what_needs_a_word_has_one_below_the_table():
    out = drawn(
        row("eager@cpu", p99_ms=None),
        row(
            "triton@here:1",
            speedup=interval(1.02, 0.98, 1.05),
            queue_ms=0.25,
            compute_ms=98.5,
            errors=3,
        ),
    )
    assert "=  no significant difference from the first row" in out
    assert "-  too few requests: p50 needs 6, p90 36, p95 72, p99 368" in out
    assert "0.25 ms in the queue and 98.50 ms computing" in " ".join(out.split())
    assert "3 requests failed, 400 were answered" in " ".join(out.split())
    assert "0.98-1.05 =" in out


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--runtime", "ort"), 2, "NAME@WHERE"),
        (("--batch", "0"), 2, "--batches"),
        (("--rounds", "2"), 2, "--rounds"),
        (("--concurrency", "0"), 2, "--concurrencies"),
        (("--threads", "1", "--instances", "2"), 2, "--instances 2 with 1 threads"),
        (("--artifact", "onnx-int8"), 6, "got: onnx-fp32"),
    ],
)
def test_bad_requests(bundle, capsys, args, code, told):
    assert run("bench", bundle, *args) == code
    assert told in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert run("bench", "--help") == 0
    assert "tlexport bench demo/digits.bundle --runtime eager@cpu" in capsys.readouterr().out


def test_a_server_with_another_file_is_told_of():
    other = row("triton@127.0.0.1:8001", facts={"artifact_sha256": "b" * 64})
    same = row("ort@cpu", facts={"artifact_sha256": "a" * 64})
    assert "ANOTHER MODEL, its file is bbbbbbbbbbbb" in drawn(same, other)
    assert "ANOTHER MODEL" not in drawn(same)


def test_what_did_not_settle_is_told_and_exits_with_4(bundle, capsys, monkeypatch):
    monkeypatch.setattr(stats, "BAND", -1.0)
    assert run("bench", bundle, "--json", "--runtime", "ort@cpu", "--batch", "1", *QUICK) == 4
    out, err = capsys.readouterr()
    assert msgspec.json.decode(out, type=BenchReport).unstable  # printed all the same
    assert "expected the last three windows within 10 %" in err
    assert "ort@cpu, batch 1" in err


def test_against_itself_and_against_a_faster_past(bundle, capsys, tmp_path):
    args = ("bench", bundle, "--runtime", "ort@cpu", "--batch", "1", *QUICK)
    assert run(*args, "--json") == 0
    told = capsys.readouterr().out
    past = msgspec.json.decode(told, type=BenchReport)
    fast = msgspec.structs.replace(past.rows[0], items_per_s=interval(1e9), p50_ms=None)
    old, older = tmp_path / "old.json", tmp_path / "older.json"
    old.write_text(told)
    older.write_bytes(msgspec.json.encode(msgspec.structs.replace(past, rows=(fast,))))
    assert run(*args, "--against", old, "--max-regression", "99%") == 0
    assert run(*args, "--against", older, "--max-regression", "10%") == 12
    assert "fewer items/s" in capsys.readouterr().err
    assert run(*args, "--threads", "2", "--against", old) in (2, 12)


def test_a_page_is_written_with_the_command_that_made_it(bundle, tmp_path, monkeypatch):
    args = ["bench", str(bundle), "--runtime", "ort@cpu", "--batch", "1", *QUICK]
    args += ["--report", str(tmp_path / "bench.html")]
    monkeypatch.setattr("sys.argv", ["tlexport", *args])
    assert run(*args) == 0
    assert f"tlexport {' '.join(args)}" in (tmp_path / "bench.html").read_text()


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--against", "none.json"), 2, "none.json"),
        (("--max-regression", "lots"), 2, "--max-regression lots"),
        (("--max-regression", "120%"), 2, "--max-regression 120%"),
        (("--report", "no/such/folder/x.html"), 2, "a place for the page"),
        (("--scenario", "server"), 2, "--find-max-rate"),
        (("--scenario", "flood"), 2, "flood"),
        (("--rate", "5"), 2, "--scenario server"),
        (("--scenario", "server", "--rate", "5", "--slo", "fast"), 2, "p99=20ms"),
    ],
)
def test_bad_requests_before_the_work(bundle, capsys, args, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("")
    assert run("bench", bundle, *args) == code
    assert told in capsys.readouterr().err


def test_every_finding_fits_into_80_columns():
    stream = io.StringIO()
    draw(bench_reports.everything(), Console(file=stream, highlight=False, width=80))
    out = stream.getvalue()
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    for told in (
        "NOT STABLE, its last three windows differ by 40%",
        "THE CLIENT takes 12% of what is measured",
        "LoadGen says INVALID: Early stopping not satisfied",
        "84.2 per second is the highest rate that keeps p99=20ms, of 2 tried",
        "3 requests failed, 400 were answered; the first: connection refused",
        "asked by 2 processes",
    ):
        assert told in " ".join(out.split()), told
