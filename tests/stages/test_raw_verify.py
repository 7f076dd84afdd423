"""A repository that was edited after it was packaged: verify says which step is at fault."""

from __future__ import annotations

import shutil

import onnx
import piped
import pytest
from onnx import helper

from tlexport.bundle import Bundle
from tlexport.errors import ServerError
from tlexport.options import PackageOptions, RuntimeOptions, ServeOptions, VerifyOptions
from tlexport.runtimes import connect
from tlexport.serving import choice
from tlexport.stages.package import package
from tlexport.stages.serve import serve
from tlexport.stages.verify import verify

RESIZE = "image = image.resize(target, filter_)"
PIXELS = 'return {"images": pixels}'
EXTENT = "image.transform(target, Image.Transform.EXTENT, (0, 0, *image.size), 2)"
TWICE = "((pixels / 255.0 - 0.45) / 0.225 * 40 + 128).clip(0, 255).astype(np.uint8)"
SWAPPED = ('"bird",\n    "fruit"', '"fruit",\n    "bird"')

READ = "    try:\n        return np.asarray(_sized("
HUNGRY = '    if source[:6] == b"MEMORY":\n        raise MemoryError("no memory left")\n'

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
    for name in (*EDITS, "whole", "hungry", "undefined"):
        options = PackageOptions(pipeline=True, top=3, max_batch=piped.BATCH, name=name)
        package(piped.bundle("photos"), root / "models", options)
    for name, (file, before, after) in EDITS.items():
        piped.edit(root / "models" / f"{name}_{file}", before, after)
    piped.edit(root / "models" / "hungry_preprocess/1/image.py", READ, HUNGRY + READ)
    shutil.copytree(root / "models/crossed", root / "models/other")
    piped.edit(root / "models/other/config.pbtxt", 'name: "crossed"', 'name: "other"')
    alter(root / "models/other/1/model.onnx", "Neg")
    alter(root / "models/undefined/1/model.onnx", "Abs", "Neg", "Log")
    return root / "models"


def alter(path, *operators):
    """Append operators to a model's answers."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    wanted, last.output[0] = last.output[0], "before"
    names = ["before", *(f"after_{number}" for number in range(len(operators) - 1)), wanted]
    for operator, given, made in zip(operators, names[:-1], names[1:], strict=True):
        model.graph.node.append(helper.make_node(operator, [given], [made]))
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


def asked(server, name, *items):
    """Labels and errors of a pipeline's answer."""
    runtime = connect(f"triton@{server.grpc}", None, RuntimeOptions(model=f"{name}_pipeline"))
    try:
        answer = runtime({"raw": piped.column(*items)})
    finally:
        runtime.close()
    return answer["label"][:, 0].tolist(), [error.decode() for error in answer["error"][:, 0]]


def test_what_fails_the_whole_call_is_put_down_to_one_item(server):
    """Want of memory is no fault that a decoder tells of: each item is tried by itself."""
    good = piped.files("photos")[0].read_bytes()
    labels, errors = asked(server, "hungry", good, b"MEMORY", good)
    assert labels == [labels[0], b"", labels[0]]
    assert "got: no memory left" in errors[1]
    assert errors[::2] == ["", ""]
    with pytest.raises(ServerError, match="got: no memory left"):
        asked(server, "hungry", b"MEMORY")


def test_scores_that_are_no_numbers_are_no_answer(server):
    good = piped.files("photos")[0].read_bytes()
    labels, errors = asked(server, "undefined", good, b"no photo")
    assert labels == [b"", b""]
    assert "expected finite scores from the model; got: NaN or infinity" in errors[0]
    assert "no image" in errors[1]
    with pytest.raises(ServerError, match="expected finite scores"):
        asked(server, "undefined", good)


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


def test_golden_files_that_cannot_be_read_here_fail(server, tmp_path):
    """Not the server's fault: it is asked nothing that this process cannot read."""
    home = Bundle(shutil.copytree(piped.bundle("photos"), tmp_path / "b"))
    cut = home.raw(home.manifest.golden[0])
    cut.write_bytes(cut.read_bytes()[:200])
    options = VerifyOptions(candidate=f"triton@{server.grpc}", max_batch=piped.BATCH)
    report = verify(home, options, RuntimeOptions(model="whole"))
    assert failed(report) == {"pipeline"}
    assert f"{cut.name}: " in report.causes[0].told
    assert "decoders" in report.causes[0].fix
