"""Every record of options refuses what it cannot mean."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest

from tlexport import options
from tlexport.checks import check_name
from tlexport.errors import OptionError
from tlexport.options import (
    AdaptOptions,
    BenchOptions,
    RuntimeOptions,
    ServeOptions,
    TrainOptions,
)

RECORDS = [
    record
    for record in vars(options).values()
    if isinstance(record, type)
    and issubclass(record, msgspec.Struct)
    and record.__name__.endswith("Options")
]


def fields() -> list[Any]:
    found = []
    for record in RECORDS:
        hints = typing.get_type_hints(record, include_extras=True)
        for field in msgspec.structs.fields(record):
            if hints[field.name] in RECORDS:  # a record within a record checks itself
                continue
            kind, meta = typing.get_args(hints[field.name])[:2]
            found.append(
                pytest.param(record, field, kind, meta, id=f"{record.__name__}.{field.name}")
            )
    return found


def test_there_are_records_for_all_stages():
    stages = {record.__name__.removesuffix("Options").lower() for record in RECORDS}
    assert stages >= {
        "train",
        "export",
        "evaluate",
        "verify",
        "package",
        "serve",
        "bench",
        "predict",
    }


@pytest.mark.parametrize(("record", "field", "kind", "meta"), fields())
def test_every_field_has_a_default_and_a_description(record, field, kind, meta):
    assert field.default is not msgspec.NODEFAULT
    assert meta.description
    assert getattr(record(), field.name) == field.default


@pytest.mark.parametrize(("record", "field", "kind", "meta"), fields())
def test_every_field_refuses_another_type_and_names_itself(record, field, kind, meta):
    with pytest.raises(OptionError) as caught:
        record(**{field.name: {"not": "this"}})
    assert f"--{field.name.replace('_', '-')}" in caught.value.expected
    assert "{'not': 'this'}" in caught.value.got


@pytest.mark.parametrize(
    ("record", "field", "kind", "meta"),
    [p for p in fields() if p.values[2] in (int, float)],
)
def test_every_number_has_limits_and_keeps_them(record, field, kind, meta):
    limits = {name: getattr(meta, name) for name in ("ge", "gt", "le", "lt")}
    outside = {
        "ge": lambda limit: limit - 1,
        "gt": lambda limit: limit,
        "le": lambda limit: limit + 1,
        "lt": lambda limit: limit,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    assert "ge" in given or "gt" in given, "a number without a lower limit"
    for name, limit in given.items():
        value = kind(outside[name](limit))
        with pytest.raises(OptionError) as caught:
            record(**{field.name: value})
        assert repr(value) in caught.value.got
    with pytest.raises(OptionError):
        record(**{field.name: "7"})
    with pytest.raises(OptionError):
        record(**{field.name: True})
    if kind is float:
        for wild in (float("nan"), float("inf")):
            with pytest.raises(OptionError, match=repr(wild)):
                record(**{field.name: wild})


def test_all_faults_are_told_together():
    with pytest.raises(OptionError) as caught:
        TrainOptions(trials=0, val_fraction=1.0, epochs="many", seed=-1)  # type: ignore[arg-type]
    for flag in ("--trials", "--val-fraction", "--epochs", "--seed"):
        assert flag in caught.value.expected
    for value in ("trials=0", "val_fraction=1.0", "epochs='many'", "seed=-1"):
        assert value in caught.value.got


def test_a_field_that_is_not_there_is_refused():
    with pytest.raises(TypeError, match="learning"):
        TrainOptions(learning=1)  # type: ignore[call-arg]


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        TrainOptions().trials = 3  # type: ignore[misc]


def test_augment_is_refused_with_the_reason():
    with pytest.raises(OptionError, match="--augment") as caught:
        TrainOptions(adapt=AdaptOptions(augment=0.5))
    assert "features are computed once" in caught.value.fix


@pytest.mark.parametrize(
    ("flag", "asked"),
    [
        ("--learning-rate", {"learning_rate": 0.1}),
        ("--strategy", {"strategy": "fsdp"}),
        ("--log", {"logs": ("mlflow",)}),
        ("--clip", {"clip": 0}),
    ],
)
def test_what_a_frozen_network_would_not_heed_is_refused(flag, asked):
    with pytest.raises(OptionError, match=f"no {flag} with a frozen backbone") as caught:
        AdaptOptions(**asked)
    assert "--unfreeze" in caught.value.fix
    assert AdaptOptions(**asked, unfreeze="last-1").active


def test_a_frozen_network_heeds_how_many_processes_there_are():
    assert not AdaptOptions(devices=2, nodes=2).active


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a b", "a/b", "-rf", ".hidden", "a;b", "$(x)", "naïve", "a\n", "ä"]
)
def test_names_that_a_shell_or_a_folder_scan_would_trip_over_are_refused(name):
    with pytest.raises(OptionError, match="letters, digits"):
        check_name(name)
    with pytest.raises(OptionError):
        TrainOptions(name=name)


@pytest.mark.parametrize("name", ["a", "resnet50", "my_model-2.1", "_x", "7"])
def test_other_names_are_taken(name):
    check_name(name)
    assert TrainOptions(name=name).name == name


def test_threads_are_shared_by_the_instances():
    assert RuntimeOptions().threads_each(8) == 8
    assert RuntimeOptions(instances=3).threads_each(8) == 2
    assert RuntimeOptions(instances=2, threads=4).threads_each(64) == 2
    with pytest.raises(OptionError, match="--instances 3 with 2 threads"):
        RuntimeOptions(instances=3).threads_each(2)


def test_elements_and_choices_are_checked_too():
    with pytest.raises(OptionError, match="--batches"):
        BenchOptions(batches=(1, 0))
    with pytest.raises(OptionError, match="--batches"):
        BenchOptions(batches=())
    with pytest.raises(OptionError, match="--server"):
        ServeOptions(server="nginx")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--http-port"):
        ServeOptions(http_port=65536)
