"""Every plug-in of every folder keeps the contract of its folder's `__init__`; new ones too."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tlexport import plugins
from tlexport.backbones import Pretrained
from tlexport.bundle import Artifact, Bundle, digest_of
from tlexport.errors import OptionError, TlexportError
from tlexport.options import ExportOptions, ImportOptions, RuntimeOptions
from tlexport.runtimes import Runtime, connect
from tlexport.spec import ModelSpec, rows
from tlexport.stages.package import package
from tlexport.stages.serve import serve

WHERE = {"golden": "bundle"}
"""Where a runtime runs, if not on "cpu"; `triton` is added when its server is up."""


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle(digits_bundle)


@pytest.fixture(scope="module")
def places(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    repository = tmp_path_factory.mktemp("contract") / "models"
    package(bundle, repository)
    with serve(repository) as server:
        yield {**WHERE, "triton": server.report.grpc}


@pytest.fixture(params=plugins.names("runtimes"))
def runtime(
    request: pytest.FixtureRequest,
    bundle: Bundle,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Runtime]:
    name = request.param
    if name == "compile":  # inductor needs a minute for this network; it has tests of its own
        monkeypatch.setattr("tlexport.runtimes.compile.BACKEND", "eager")
    opened = connect(f"{name}@{places.get(name, 'cpu')}", bundle, RuntimeOptions())
    yield opened
    opened.close()


def test_a_runtime_answers_rows_in_order(runtime: Runtime, bundle: Bundle) -> None:
    golden = bundle.golden()
    picked = [5, 0, 3]
    answer = runtime(rows(golden.inputs, picked))
    assert set(answer) == {spec.name for spec in bundle.spec.outputs}
    for spec in bundle.spec.outputs:
        assert answer[spec.name].dtype.name == spec.dtype
        scale = float(np.abs(golden.outputs[spec.name]).max())
        np.testing.assert_allclose(
            answer[spec.name], golden.outputs[spec.name][picked], atol=1e-4 * scale, rtol=0
        )


def test_a_runtime_may_be_called_from_threads(runtime: Runtime, bundle: Bundle) -> None:
    golden = bundle.golden()
    count = min(16, len(golden.samples))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: runtime(rows(golden.inputs, [i])), range(count)))
    for name, stored in golden.outputs.items():
        together = np.concatenate([answer[name] for answer in answers])
        scale = float(np.abs(stored).max())
        np.testing.assert_allclose(together, stored[:count], atol=1e-4 * scale, rtol=0)


def test_a_runtime_tells_what_it_is(runtime: Runtime, bundle: Bundle) -> None:
    assert "@" in runtime.name
    assert isinstance(runtime.spec, ModelSpec)
    assert runtime.spec.inputs == bundle.spec.inputs
    assert runtime.facts()
    before = dict(runtime.counters())
    runtime(rows(bundle.golden().inputs, [0]))
    after = runtime.counters()
    assert set(before) == set(after)
    assert not after or after["requests"] == before["requests"] + 1


def test_a_runtime_refuses_other_tensors(runtime: Runtime, bundle: Bundle) -> None:
    good = rows(bundle.golden().inputs, [0])
    name = bundle.spec.inputs[0].name
    for wrong in (
        {},
        {**good, "surplus": good[name]},
        {name: good[name].astype(np.float64)},
        {name: good[name][0]},
    ):
        with pytest.raises(TlexportError) as caught:
            runtime(wrong)
        assert caught.value.expected
        assert caught.value.fix


@pytest.mark.parametrize("name", plugins.names("runtimes"))
@pytest.mark.parametrize("where", ["nowhere on earth", "://", "cpu:cpu"])
def test_a_runtime_refuses_a_place_it_does_not_know(name: str, where: str, bundle: Bundle) -> None:
    with pytest.raises(TlexportError) as caught:
        connect(f"{name}@{where}", bundle, RuntimeOptions(timeout_s=2)).close()
    assert caught.value.exit_code != 1


@pytest.mark.parametrize("name", plugins.names("targets"))
def test_a_target_writes_what_it_tells(name: str, bundle: Bundle, tmp_path: Path) -> None:
    artifact = plugins.load("targets", name).export(bundle, tmp_path, ExportOptions(target=name))
    assert isinstance(artifact, Artifact)
    assert artifact.target == name
    assert artifact.file in artifact.files
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == set(artifact.files)
    assert artifact.sha256 == digest_of(tmp_path, artifact.files)
    assert artifact.source_sha256 == bundle.manifest.weights_sha256
    assert artifact.triton_backend


SMALL = {"timm": "mobilenetv3_small_050", "torchvision": "mobilenet_v3_small"}
"""A small network of each source; `transformers` is given a folder, others their first."""


def question(pretrained: Pretrained) -> tuple[torch.Tensor, ...]:
    """Two inputs as `Pretrained.module` of that modality takes them."""
    if pretrained.modality == "image":
        return (torch.zeros(2, 3, *pretrained.preprocess["size"]),)
    if pretrained.modality == "text":
        return (torch.ones(2, 5, dtype=torch.int64),) * 2
    samples = torch.zeros(2, pretrained.preprocess["shortest"])
    masked = (torch.ones_like(samples, dtype=torch.bool),)
    return (samples, *(masked if pretrained.preprocess["mask"] else ()))


@pytest.mark.parametrize("name", plugins.names("backbones"))
def test_a_backbone_source_lists_builds_and_refuses(name: str, tiny_bert: Path) -> None:
    source = plugins.load("backbones", name)
    listed = source.names()
    assert listed
    assert len(listed) == len(set(listed))
    assert callable(source.fetch)
    with pytest.raises(OptionError, match="did you mean"):
        source.build(listed[0] + "x")
    small = str(tiny_bert) if name == "transformers" else SMALL.get(name, listed[0])
    pretrained = source.build(small)
    again = source.build(small, json.loads(json.dumps(pretrained.recipe)))
    shapes = [{k: v.shape for k, v in p.module.state_dict().items()} for p in (pretrained, again)]
    assert shapes[0] == shapes[1]
    pretrained.behead(pretrained.module)
    pretrained.module.eval()
    with torch.inference_mode():
        features = pretrained.module(*question(pretrained))
    if pretrained.modality == "audio":
        features, valid = features
        assert valid.shape == features.shape[:2]
    assert features.ndim == (2 if pretrained.modality == "image" else 3)
    assert len(features) == 2
    assert not any(k.startswith(pretrained.spare) for k in pretrained.module.state_dict())


TASK = {
    "augment": ["inputs", "strength", "generator"],
    "read": ["root", "choice", "known"],
    "load": ["sources", "preprocess", "files"],
    "learner": ["options", "examples"],
    "spec": ["name", "labels", "learner"],
    "assemble": ["learner", "head"],
    "network": ["bundle"],
    "decide": ["spec", "outputs"],
    "scorer": ["spec"],
    "probes": ["spec", "inputs", "most"],
}


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_a_task_offers_what_the_stages_call(name: str) -> None:
    task = plugins.load("tasks", name)
    offered = {verb: list(inspect.signature(getattr(task, verb)).parameters) for verb in TASK}
    assert offered == TASK


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_what_a_task_reads_raw_inputs_with_offers_what_a_pipeline_calls(name: str) -> None:
    task = plugins.load("tasks", name)
    if not hasattr(task, "RAW"):
        assert name == "tensors", "arrays of any meaning have no raw form"
        return
    reader = task.RAW
    assert reader.TAKES.startswith(("the bytes of one ", "one "))
    assert all(suffix.startswith(".") for suffix in reader.suffixes())
    taken = list(inspect.signature(reader.arrays).parameters)
    assert taken == ["sources", "numbers", "files", "threads"]
    assert next(iter(inspect.signature(reader.load).parameters)) == "source"


@pytest.mark.parametrize("name", plugins.names("importers"))
def test_an_importer_is_an_option_and_offers_what_the_stage_calls(name: str) -> None:
    importer = plugins.load("importers", name)
    assert list(inspect.signature(importer.read).parameters) == ["options"]
    assert list(inspect.signature(importer.network).parameters) == ["bundle"]
    assert getattr(ImportOptions(), name) is None
    with pytest.raises(TlexportError) as caught:
        importer.read(ImportOptions(**{name: "nothing/of this name"}))
    assert caught.value.exit_code != 1
    assert caught.value.fix


def test_a_task_builds_the_network_that_made_the_golden_outputs(bundle: Bundle) -> None:
    golden = bundle.golden()
    network = plugins.load("tasks", bundle.spec.task).network(bundle)
    assert not network.training
    with torch.inference_mode():
        answer = network(*(torch.from_numpy(golden.inputs[i.name][:4]) for i in bundle.spec.inputs))
    stored = golden.outputs[bundle.spec.outputs[0].name][:4]
    np.testing.assert_allclose(answer.numpy(), stored, atol=1e-4 * np.abs(stored).max(), rtol=0)
