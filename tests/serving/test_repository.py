from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving import bundles, small_models

from tlexport.bundle import read_tensors
from tlexport.errors import OptionError, RepositoryError
from tlexport.options import PackageOptions
from tlexport.serving import config, repository, staging
from tlexport.stages.package import package

SLOW = """
import shutil, sys, time
sys.path.insert(0, {tests!r})
from tlexport.stages.package import package
from tlexport.serving import repository
real = repository.write_tensors
def slow(path, tensors):
    if "tlexport.package." in str(path):  # the trial
        return real(path, tensors)
    print("writing", flush=True)
    time.sleep(60)
repository.write_tensors = slow
package({bundle!r}, {place!r})
"""


@pytest.fixture
def bundle(tmp_path):
    return bundles.make(tmp_path / "b.bundle")


def killed_packager(bundle, place):
    """Start a packager and kill it -9 in the middle of writing a version."""
    code = SLOW.format(
        tests=str(Path(__file__).parents[1]), bundle=str(bundle.root), place=str(place)
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_everything_a_version_has(bundle, tmp_path):
    place = tmp_path / "models"
    assert package(bundle, place).version == 1
    model = place / "insects"
    assert (model / "labels.txt").read_text() == "ant\nbee\ncrow\n"
    assert (model / "1/model.onnx").read_bytes() == (
        bundle.artifact_file(bundle.artifact("onnx-fp32")).read_bytes()
    )
    origin = json.loads((model / "1/tlexport.json").read_text())
    assert origin["artifact_sha256"] == bundle.artifact("onnx-fp32").sha256
    assert origin["weights_sha256"] == bundle.manifest.weights_sha256
    golden = read_tensors(model / "1/golden.safetensors")
    assert np.array_equal(golden["input:images"], bundles.images()[:4])
    assert np.array_equal(golden["output:logits"], bundles.answers(bundles.images())[:4])
    found = config.parse(model / "config.pbtxt")
    for warmup in found.model_warmup:
        file = model / "warmup" / warmup.inputs["images"].input_data_file
        assert file.read_bytes() == bundles.images()[:1].tobytes()
    assert not [path for path in tmp_path.iterdir() if "staging" in path.name]


def test_versions_go_up_and_the_configuration_tells_each_ones_file(bundle, tmp_path):
    place = tmp_path / "models"
    other = bundles.make(tmp_path / "other.bundle", seed=1)
    (place / "insects/7").mkdir(parents=True)
    for number, source in ((8, bundle), (9, other)):
        assert package(source, place).version == number
    assert repository.models(place) == {"insects": [7, 8, 9]}
    digests = config.digests_of(config.parse(place / "insects/config.pbtxt"))
    assert digests == {"8": sha(bundle), "9": sha(other)}


def sha(bundle):
    return bundle.artifact("onnx-fp32").sha256


def test_packagers_at_once_take_different_numbers(bundle, tmp_path):
    place = tmp_path / "models"
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(package, bundle.root, place) for _ in range(6)]
    assert sorted(future.result().version for future in futures) == [1, 2, 3, 4, 5, 6]
    assert all((place / f"insects/{n}/tlexport.json").is_file() for n in range(1, 7))


def test_a_killed_packager_leaves_nothing_that_counts(bundle, tmp_path):
    place = tmp_path / "models"
    killed_packager(bundle, place)
    assert repository.models(place) == {}
    assert package(bundle, place).version == 1
    before = (place / "insects/config.pbtxt").read_bytes()
    killed_packager(bundle, place)
    assert repository.models(place) == {"insects": [1]}
    assert (place / "insects/config.pbtxt").read_bytes() == before
    assert package(bundle, place).version == 2
    left = [*place.rglob("*staging*"), *tmp_path.glob(".*staging*")]
    assert left == []


def test_a_repository_that_is_a_disk_of_its_own_is_filled_in_place(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "stage_place", lambda place: None)
    assert package(bundle, tmp_path / "models").version == 1
    assert repository.check(tmp_path / "models") == {"insects": [1]}


def test_another_signature_is_refused_unless_allowed(bundle, tmp_path):
    place = tmp_path / "models"
    package(bundle, place)
    described = place / "insects" / "config.pbtxt"
    before = config.parse(described)
    before.output[0].dims[0] = 4  # as if the model in service had one class more
    described.write_text(config.text(before))
    with pytest.raises(RepositoryError, match=r"the outputs of 'insects'") as caught:
        package(bundle, place)
    assert "logits FP32 [4]" in str(caught.value)
    assert "logits FP32 [3]" in caught.value.got
    assert repository.models(place) == {"insects": [1]}
    allowed = PackageOptions(allow_signature_change=True)
    assert package(bundle, place, allowed).version == 2


def test_other_labels_are_another_signature(bundle, tmp_path, monkeypatch):
    package(bundle, tmp_path / "models")
    monkeypatch.setattr(bundles, "LABELS", ("ant", "bee", "dove"))
    other = bundles.make(tmp_path / "other.bundle")
    with pytest.raises(RepositoryError, match=r"the labels of 'insects'.*crow"):
        package(other, tmp_path / "models")


def test_a_label_of_two_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "LABELS", ("ant", "bee\nhive", "crow"))
    with pytest.raises(RepositoryError, match="one line"):
        package(bundles.make(tmp_path / "b"), tmp_path / "models")


def test_older_warmup_files_stay_for_one_more_configuration(bundle, tmp_path, monkeypatch):
    place = tmp_path / "models"
    real = bundles.images
    for shift in range(3):
        monkeypatch.setattr(bundles, "images", lambda count=6, s=shift: real(count) // (s + 1))
        package(bundles.make(tmp_path / f"{shift}.bundle"), place)
        assert len(list((place / "insects/warmup").iterdir())) == min(shift + 1, 2)


@pytest.mark.parametrize("name", ["a b", "../x", "x;rm", "", ".hidden", "-x"])
def test_names_that_triton_cannot_bear(bundle, tmp_path, name):
    with pytest.raises(OptionError, match="model name"):
        package(bundle, tmp_path / "models", PackageOptions(name=name))


def test_a_place_that_cannot_be_written(bundle, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(RepositoryError, match="to write the repository"):
        package(bundle, tmp_path / "models")


def lay_nothing(place):
    pass


def lay_empty(place):
    place.mkdir()


def lay_file(place):
    place.write_bytes(b"x")


def lay_loose(place):
    place.mkdir()
    (place / "net.onnx").write_bytes(b"x")


def lay_bundle(place):
    bundles.make(place)


def lay_model(place):
    small_models.lay(place.parent, place.name, small_models.double(), small_models.plain())


def lay_no_version(place):
    (place / "double").mkdir(parents=True)
    (place / "double/config.pbtxt").write_text(small_models.plain())
    (place / "double/01").mkdir()


def lay_no_config(place):
    (place / "double/1").mkdir(parents=True)


def lay_bad_config(place):
    small_models.lay(place, "double", small_models.double(), "max_batch: 3\n")


def lay_bad_name(place):
    small_models.lay(place, "two words", small_models.double(), small_models.plain())


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (lay_nothing, "no such folder"),
        (lay_empty, "an empty folder"),
        (lay_file, "a file"),
        (lay_loose, "net.onnx in it, but no model folder"),
        (lay_bundle, "tlexport package"),
        (lay_model, "the folder of one model"),
        (lay_no_version, "a version folder such as double/1"),
        (lay_no_config, "none, and no model.onnx"),
        (lay_bad_config, 'no field named "max_batch"'),
        (lay_bad_name, "'two words'"),
    ],
)
def test_what_is_no_repository_is_told_apart(tmp_path, lay, message):
    place = tmp_path / "place"
    lay(place)
    with pytest.raises((RepositoryError, OptionError), match=message):
        repository.check(place)


def test_a_model_without_configuration_is_for_the_server_to_complete(tmp_path):
    small_models.lay(tmp_path, "double", small_models.double(), None)
    assert repository.check(tmp_path) == {"double": [1]}
    assert not repository.fully_described(tmp_path)


def test_packaged_models_leave_nothing_to_complete(bundle, tmp_path):
    for batch in (8, 0):
        package(bundle, tmp_path / "models", PackageOptions(name=f"m{batch}", max_batch=batch))
    assert repository.fully_described(tmp_path / "models")


def test_a_lock_is_waited_for(bundle, tmp_path):
    place = tmp_path / "models"
    place.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with staging.locked(place):
            future = pool.submit(package, bundle.root, place)
            time.sleep(0.3)
            assert not future.done()
        assert future.result().version == 1


def test_a_file_with_the_name_of_a_version_is_passed_over(bundle, tmp_path):
    place = tmp_path / "models"
    package(bundle, place)
    (place / "insects/2").write_text("somebody's note")
    (place / "insects/07").mkdir()
    assert package(bundle, place).version == 3


def test_unfinished_files_of_a_killed_packager_go(bundle, tmp_path):
    place = tmp_path / "models"
    package(bundle, place)
    model = place / "insects"
    left = [model / ".config.pbtxt.x1y2", model / ".labels.txt.x1y2", model / "warmup/.abc.x1y2"]
    for path in left:
        path.write_bytes(b"half")
    package(bundle, place)
    assert not any(path.exists() for path in left)
    assert list((model / "warmup").iterdir())


def test_a_first_version_that_does_not_fit_leaves_no_model(bundle, tmp_path, monkeypatch):
    place = tmp_path / "models"
    monkeypatch.setattr(staging, "stage_place", lambda repository: None)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "fill_version", full)
    with pytest.raises(RepositoryError, match="No space left"):
        package(bundle, place)
    assert not (place / "insects").exists()


def test_hidden_folders_are_no_models_and_the_fix_says_so(bundle, tmp_path):
    package(bundle, tmp_path / "models")
    (tmp_path / "models/.git").mkdir()
    with pytest.raises(RepositoryError, match=r"'\.git' in") as caught:
        repository.check(tmp_path / "models")
    assert "move that folder" in caught.value.fix
