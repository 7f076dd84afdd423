import msgspec
import pytest
from bench_reports import interval, report, row

from tlexport.errors import OptionError, RegressionError
from tlexport.stages import against


def test_the_same_is_no_regression():
    against.hold(report(), report(), 0.1)


def test_slower_beyond_what_is_allowed_is_told_with_both_numbers():
    with pytest.raises(RegressionError) as caught:
        against.hold(report(row(p50=12.0)), report(row(p50=10.0)), 0.1)
    assert "17% fewer items/s (100 -> 83.33)" in caught.value.got
    assert "p50 20% longer (10 -> 12 ms)" in caught.value.got
    assert "p99 20% longer" in caught.value.got
    assert caught.value.exit_code == 12


def test_slower_within_what_is_allowed_passes():
    against.hold(report(row(p50=12.0)), report(row(p50=10.0)), 0.25)


def test_faster_passes():
    against.hold(report(row(p50=5.0)), report(row(p50=10.0)), 0.1)


def test_what_noise_may_explain_passes():
    noisy = {"items_per_s": interval(80, 0.4), "p50_ms": interval(12, 0.4), "p99_ms": None}
    against.hold(report(row(**noisy)), report(row()), 0.1)


def test_a_slower_tail_alone_is_told():
    with pytest.raises(RegressionError, match="p99 100% longer") as caught:
        against.hold(report(row(p99_ms=interval(32.0))), report(row()), 0.1)
    assert "items/s" not in caught.value.got


def test_errors_that_were_not_there_are_a_regression():
    with pytest.raises(RegressionError, match="7 requests failed, none before"):
        against.hold(report(row(errors=7)), report(row()), 0.1)


OTHERS = {
    "CPU": lambda r: change(r, environment=change(r.environment, cpu="another")),
    "cores": lambda r: change(r, environment=change(r.environment, cores=99)),
    "GPUs": lambda r: change(r, gpus=({"name": "a card"},)),
    "threads": lambda r: change(r, threads=7),
    "instances": lambda r: change(r, instances=7),
    "load": lambda r: change(r, load="closed loop, 9 in flight"),
    "inputs": lambda r: change(r, digests=r.digests | {"golden": "e" * 64}),
    "files": lambda r: change(r, digests=r.digests | {"onnx-fp32": "e" * 64}),
    "rows": lambda r: change(r, rows=(row(batch=3),)),
    "served files": lambda r: change(r, rows=(row(facts={"artifact_sha256": "e" * 64}),)),
}


def change(record, **values):
    return msgspec.structs.replace(record, **values)


@pytest.mark.parametrize("what", sorted(OTHERS))
def test_what_was_not_measured_alike_is_not_compared(what):
    with pytest.raises(OptionError, match=f"the same {what}"):
        against.hold(report(), OTHERS[what](report()), 0.1)


def test_a_report_is_read_and_what_is_none_is_refused(tmp_path):
    good, bad = tmp_path / "old.json", tmp_path / "bad.json"
    good.write_bytes(msgspec.json.encode(report()))
    bad.write_text('{"model": 3}')
    assert against.read(good) == report()
    for path in (bad, tmp_path / "none.json"):
        with pytest.raises(OptionError, match="tlexport bench --json"):
            against.read(path)
