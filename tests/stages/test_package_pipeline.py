"""package --pipeline: what is written, together or not at all."""

from __future__ import annotations

import json
import shutil

import msgspec
import piped
import pytest
from serving import bundles

from tlexport import preprocess
from tlexport.bundle import Bundle, encode
from tlexport.cli import main
from tlexport.environment import cores
from tlexport.errors import BundleError, OptionError, RepositoryError
from tlexport.options import PackageOptions
from tlexport.reports import PackageReport
from tlexport.serving import config, repository
from tlexport.serving.lint import lint
from tlexport.stages.package import package

PIPED = PackageOptions(pipeline=True, max_batch=piped.BATCH)
FOUR = ("photos_preprocess", "photos_postprocess", "photos", "photos_pipeline")
READERS = {"photos": "image.py", "texts": "text.py", "sounds": "audio.py"}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def photos(tmp_path):
    return Bundle(shutil.copytree(piped.bundle("photos"), tmp_path / "photos.bundle"))


def content(place):
    """Every file of a repository but its lock."""
    files = [path for path in place.rglob("*") if path.is_file() and path.name != ".tlexport.lock"]
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def told(place, name):
    return config.parse(place / name / "config.pbtxt")


@pytest.mark.parametrize("kind", READERS)
def test_the_step_holds_the_very_file_that_training_used(kind, place):
    report = package(piped.bundle(kind), place, PIPED)
    assert report.pipeline == f"{kind}_pipeline"
    assert report.steps == (f"{kind}_preprocess", kind, f"{kind}_postprocess")
    step = place / f"{kind}_preprocess" / "1"
    source = preprocess.__path__[0] + f"/{READERS[kind]}"
    with open(source, "rb") as stream:  # noqa: PTH123
        assert (step / READERS[kind]).read_bytes() == stream.read()
    home = Bundle(piped.bundle(kind))
    numbers = json.loads((step / "step.json").read_text())
    assert numbers["numbers"] == home.spec.preprocess
    for name, kept in home.files().items():
        assert (step / "files" / name).read_bytes() == kept
    assert not lint(place, cores=cores()), "a server loads it, and nothing is odd"


def test_all_have_one_version_and_the_ensemble_names_it_for_each(photos, place):
    first = package(photos, place, PackageOptions(max_batch=piped.BATCH))
    assert (first.version, first.pipeline, first.steps) == (1, "", ())
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["photos"]
    assert package(photos, place, PIPED).version == 2
    assert {name: repository.versions(place / name) for name in FOUR} == {
        "photos": [1, 2],
        **{name: [2] for name in FOUR if name != "photos"},
    }
    steps = told(place, "photos_pipeline").ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [
        ("photos_preprocess", 2),
        ("photos", 2),
        ("photos_postprocess", 2),
    ]


def test_a_model_that_has_one_keeps_it_unasked(photos, place):
    package(photos, place, PackageOptions(pipeline=True, top=2, max_batch=piped.BATCH))
    report = package(photos, place, PackageOptions(max_batch=piped.BATCH))
    assert (report.version, report.pipeline) == (2, "photos_pipeline")
    found = told(place, "photos_pipeline")
    assert {step.model_version for step in found.ensemble_scheduling.step} == {2}
    assert [list(block.dims) for block in found.output] == [[2], [2], [1]]
    for name in FOUR[:3]:  # the ensemble of version 1 is served until that of version 2 is
        assert told(place, name).version_policy.latest.num_versions == 2
    assert found.version_policy.latest.num_versions == 1
    assert not lint(place, cores=cores())


def test_the_label_count_is_part_of_the_signature(photos, place):
    package(photos, place, PIPED)
    before = content(place)
    with pytest.raises(RepositoryError, match="outputs of 'photos_postprocess'"):
        package(photos, place, PackageOptions(top=2, max_batch=piped.BATCH))
    assert content(place) == before
    changed = PackageOptions(top=2, max_batch=piped.BATCH, allow_signature_change=True)
    assert package(photos, place, changed).version == 2


def test_without_server_side_batches_a_request_may_hold_any_number(photos, place):
    package(photos, place, PackageOptions(pipeline=True, max_batch=0))
    assert [list(block.dims) for block in told(place, "photos_pipeline").input] == [[-1, 1]]
    odd = [each for each in lint(place, cores=cores()) if each.rule != "label-shape"]
    assert not odd, "of labels without batches a warning is due, pipeline or not"


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk_leaves_all_or_nothing(photos, place, monkeypatch, failing, again):
    """The disk is full when one of the four is put in its place, the first time or the next."""
    if again:
        package(photos, place, PIPED)
    before = content(place) if again else {}
    real, calls = repository._describe, []

    def describe(model, new, number):
        if model.is_relative_to(place.parent) and new.settings.name in FOUR:
            calls.append(new.settings.name)
            if len(calls) == failing + 1:
                raise OSError(28, "No space left on device")
        real(model, new, number)

    monkeypatch.setattr(repository, "_describe", describe)
    with pytest.raises(RepositoryError, match="No space left"):
        repository.install(place, versions_of(photos, place))
    assert calls == list(FOUR[: failing + 1])
    assert content(place) == before
    assert not [path for path in place.parent.rglob(".tlexport-staging*")]
    monkeypatch.setattr(repository, "_describe", real)
    assert package(photos, place, PIPED).version == 1 + again


def versions_of(home, place):
    """What `package` would install."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlexport.stages.package.hold_rules", lambda together, triton: None)
        patch.setattr(repository, "install", lambda place, new, allow: found.append(new) or 1)
        patch.setattr("tlexport.stages.package._files", lambda model, number: ())
        package(home, place, PIPED)
    return found[0]


def test_what_has_no_pipeline_is_told(tmp_path, place, photos):
    def refused(home, options=PIPED):
        with pytest.raises((OptionError, BundleError)) as caught:
            package(home, place, options)
        assert not place.exists()
        assert caught.value.fix
        return caught.value

    insects = bundles.make(tmp_path / "insects.bundle")  # its raw files were never kept
    assert "no 0.png, 1.png, 2.png" in refused(insects).got
    tensors = with_spec(insects, task="tensors")
    assert "one of 'tensors'" in refused(tensors).got
    unlabelled = with_spec(insects, task="image-classification", labels=())
    assert "0 labels for 'logits' [batch, 3]" in refused(unlabelled).got
    many = PackageOptions(pipeline=True, top=4, max_batch=piped.BATCH)
    assert "--top of at most the 3 labels" in refused(photos, many).expected
    alone = PackageOptions(top=2, max_batch=piped.BATCH)
    assert refused(photos, alone).got == "--top 2 alone"
    cut = photos.raw(photos.manifest.golden[1])
    cut.write_bytes(cut.read_bytes()[:200])
    assert f"{cut.name} cannot be read" in refused(photos).got


def with_spec(home, **changes):
    """The bundle with another spec, its artifact and proof made to fit."""
    changed = msgspec.structs.replace(home.spec, **changes)
    manifest = msgspec.structs.replace(home.manifest, spec=changed)
    (home.root / "bundle.json").write_bytes(encode(manifest))
    path = home.root / "artifacts/onnx-fp32/artifact.json"
    artifact = json.loads(path.read_text())
    path.write_text(json.dumps(artifact | {"spec_sha256": ""}))
    found = Bundle(home.root)
    found.write_report("parity-onnx-fp32", bundles.parity(found))
    return found


def test_lint_tells_of_a_pipeline_whose_version_is_gone(photos, place):
    """No word of -1: that would pair what one version reads with another's weights."""
    package(photos, place, PIPED)
    (place / "photos_preprocess/1").rename(place / "photos_preprocess/7")
    (found,) = [each for each in lint(place, cores=cores()) if each.rule == "ensemble-step"]
    assert (found.model, found.got) == ("photos_pipeline", "1")
    assert "package the model again" in found.fix
    assert not found.edits


def test_the_command_tells_of_it_and_the_report_is_kept(photos, place, capsys):
    line = ["package", str(photos.root), "-r", str(place), "--pipeline", "--max-batch", "4"]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "raw files in, labels out: photos_pipeline, by photos_preprocess and" in shown
    assert photos.report("package", PackageReport).pipeline == "photos_pipeline"
