"""A repository that was edited after it was packaged: verify says which step is at fault."""

from __future__ import annotations

import shutil

import piped
import pytest

from tlexport.bundle import Bundle
from tlexport.errors import ServerError
from tlexport.options import PackageOptions, RuntimeOptions, ServeOptions, VerifyOptions
from tlexport.serving import choice
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify

RESIZE = "image = image.resize(target, filter_)"
PIXELS = 'return {"images": pixels}'
EXTENT = "image.transform(target, Image.Transform.EXTENT, (0, 0, *image.size), 2)"
TWICE = "((pixels / 255.0 - 0.45) / 0.225 * 40 + 128).clip(0, 255).astype(np.uint8)"
SWAPPED = ('"bird",\n    "fruit"', '"fruit",\n    "bird"')

EDITS = {
    "coarse": ("preprocess/1/image.py", RESIZE, RESIZE.replace("filter_", "0")),
    "aliased": ("preprocess/1/image.py", RESIZE, f"image = {EXTENT}"),
    "normalised": ("preprocess/1/image.py", PIXELS, f'return {{"images": {TWICE}}}'),
    "reversed": ("preprocess/1/image.py", PIXELS, 'return {"images": pixels[..., ::-1]}'),
    "swapped": ("postprocess/1/step.json", *SWAPPED),
    "softmax": ("postprocess/1/model.py", "np.exp(scores", "np.exp(2 * scores"),
    "mates": ("preprocess/1/model.py", "if len(told) == 1 and told[0]:", "if any(told):"),
    "crossed": ("pipeline/config.pbtxt", 'model_name: "crossed"', 'model_name: "other"'),
}
"""Model -> what is edited: a file behind its name, from, to."""

NAMED = {
    "coarse": ("preprocessing", "interpolation is 'nearest' there, and was 'bicubic'"),
    "aliased": ("preprocessing", "'images' differs in"),
    "normalised": ("preprocessing", "'images' differs in 100% of its values"),
    "reversed": ("preprocessing", "the channels are reversed (BGR)"),
    "swapped": ("postprocessing", "'bird' is told as 'fruit', 'fruit' is told as 'bird'"),
    "softmax": ("postprocessing", "where the original says"),
    "mates": ("bad-item", "refuses the batch mates of a bad item, too"),
    "crossed": ("pipeline", "each step of crossed_pipeline answers as it should by itself"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository of many copies of one model, each edited in its own way."""
    root = tmp_path_factory.mktemp("edited")
    for name in (*EDITS, "whole"):
        options = PackageOptions(pipeline=True, top=3, max_batch=piped.BATCH, name=name)
        package(piped.bundle("photos"), root / "models", options)
    for name, (file, before, after) in EDITS.items():
        piped.edit(root / "models" / f"{name}_{file}", before, after)
    other_model(root / "models")
    return root / "models"


def other_model(place):
    """A model `other` of the same signature whose answers are negative."""
    import onnx
    from onnx import helper

    shutil.copytree(place / "crossed", place / "other")
    piped.edit(place / "other/config.pbtxt", 'name: "crossed"', 'name: "other"')
    path = place / "other/1/model.onnx"
    model = onnx.load(path)
    last = model.graph.node[-1]
    inner = f"{last.output[0]}_kept"
    wanted = last.output[0]
    last.output[0] = inner
    model.graph.node.append(helper.make_node("Neg", [inner], [wanted]))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def server(place):
    server, _ = choice.start("embedded", place, ServeOptions())
    yield server
    server.stop()


@pytest.fixture
def told(server):
    def call(name, **more):
        options = VerifyOptions(candidate=f"triton@{server.grpc}", max_batch=piped.BATCH)
        return verify(piped.bundle("photos"), options, RuntimeOptions(model=name, **more))

    return call


def failed(report):
    return {check.check for check in report.checks if not check.passed}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_caught_and_named(told, name):
    report = told(name)
    assert not report.passed
    assert failed(report) <= {"pipeline", "pipeline, a bad item"}, "the model itself is right"
    cause, why = NAMED[name]
    assert [each.name for each in report.causes] == [cause]
    assert why in report.causes[0].told
    assert f"{name}_" in report.causes[0].told
    assert "package" in report.causes[0].fix
    assert report.walk is None


def test_what_was_left_alone_passes(told):
    report = told("whole")
    assert report.passed
    assert report.causes == ()


@pytest.mark.parametrize("name", ["normalised", "swapped", "reversed"])
def test_serve_refuses_it_too(place, tmp_path, name):
    for suffix in ("", "_preprocess", "_postprocess", "_pipeline"):
        shutil.copytree(place / f"{name}{suffix}", tmp_path / "models" / f"{name}{suffix}")
    with pytest.raises(ServerError, match=f"'{name}_pipeline' to answer 'golden/") as caught:
        serve(tmp_path / "models")
    assert " at 0." in caught.value.got


def test_a_wrong_model_is_not_put_down_to_the_steps(place, told):
    """Tensors fail, so does the pipeline; the causes are the model's."""
    report = told("other")
    assert "answers" in failed(report)
    assert not {"preprocessing", "postprocessing", "pipeline"} & {c.name for c in report.causes}


def test_a_pipeline_left_behind_is_told(server, place, tmp_path, told):
    """The model was packaged by other means: the ensemble still answers by the version before."""
    shutil.copytree(place / "whole", tmp_path / "models" / "whole")
    for step in ("_preprocess", "_postprocess", "_pipeline"):
        shutil.copytree(place / f"whole{step}", tmp_path / "models" / f"whole{step}")
    shutil.copytree(tmp_path / "models/whole/1", tmp_path / "models/whole/2")
    behind, _ = choice.start("embedded", tmp_path / "models", ServeOptions())
    try:
        options = VerifyOptions(candidate=f"triton@{behind.grpc}", max_batch=piped.BATCH)
        newest = verify(piped.bundle("photos"), options, RuntimeOptions(model="whole"))
        asked = RuntimeOptions(model="whole", version="1")
        older = verify(piped.bundle("photos"), options, asked)
    finally:
        behind.stop()
    assert not newest.passed
    assert newest.causes[0].name == "pipeline-version"
    assert "answers by version 1, and the model in service is of version 2" in newest.causes[0].told
    assert older.passed


def test_without_the_golden_files_the_model_alone_is_held(server, tmp_path):
    home = Bundle(shutil.copytree(piped.bundle("photos"), tmp_path / "b"))
    home.raw(home.manifest.golden[0]).unlink()
    options = VerifyOptions(candidate=f"triton@{server.grpc}", max_batch=piped.BATCH)
    report = verify(home, options, RuntimeOptions(model="swapped"))
    assert report.passed
    assert report.notes == (
        "swapped_pipeline was not asked: the bundle has not all golden samples as they came",
    )
