"""The short form of `benchmarks/an_hour_of_load.py`."""

from benchmarks import an_hour_of_load as hour
from benchmarks.an_hour_of_load import Found


def test_every_good_request_is_answered_right_and_every_bad_one_refused(tmp_path):
    found = hour.loaded(1600, 8, tmp_path)
    assert found.failed == 0, found.first
    assert (found.answered, found.wrong) == (1440, 0)
    assert dict(found.refused) == dict.fromkeys(hour.MALFORMED, 20)
    assert not found.accepted
    assert len(found.latencies_ms) == 1440
    assert min(found.memory_mb) > 20
    assert found.growth() < 0.2  # so short a run still warms up; the long one must be flat


def test_what_fails_does_not_pass():
    flat = {"memory_mb": [100.0] * 50}
    assert Found(**flat).passed()
    assert not Found(**flat, wrong=1).passed()
    assert not Found(**flat, failed=1).passed()
    accepted = Found(**flat)
    accepted.accepted["no input"] += 1
    assert not accepted.passed()
    assert not Found(memory_mb=[100.0 + n for n in range(50)]).passed()
