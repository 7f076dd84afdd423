"""Broken exports are caught, each with its cause by name; exit code and report say so."""

import broken_exports
import numpy as np
import onnx
import pytest
import small_bundles
import tiny_text
import torch
from onnx.external_data_helper import convert_model_to_external_data

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.diagnosis import _walk
from tlexport.options import TrainOptions
from tlexport.reports import ParityReport
from tlexport.stages.train import train
from tlexport.stages.verify import verify
from tlexport.targets import onnx as onnx_target
from tlexport.tasks._sequences import Pool


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    place = tmp_path_factory.mktemp("healthy") / "model.onnx"
    return broken_exports.exported(broken_exports.How(), place)


@pytest.fixture(scope="module")
def traced_once():
    """The original's trace, which is the same for every one of its broken exports."""
    known = {}

    def trace(bundle, wanted):
        key = bundle.manifest.weights_sha256
        if key not in known:
            known[key] = onnx_target.trace(bundle, wanted)
        return known[key]

    return trace


@pytest.fixture
def bundle(tmp_path, monkeypatch, traced_once):
    monkeypatch.setattr(_walk, "trace", traced_once)
    small_bundles.plug_task(monkeypatch, broken_exports.Mixed)
    return small_bundles.make(tmp_path / "b", network=broken_exports.Mixed())


def test_the_healthy_one_passes(bundle, healthy):
    small_bundles.put_artifact(bundle, healthy)
    report = verify(bundle)
    assert report.passed, report.causes
    assert report.causes == ()
    assert 0.1 < report.ratio < 4


@pytest.mark.parametrize("broken", broken_exports.EVERY, ids=lambda broken: broken.name)
def test_a_broken_export_is_caught_and_its_cause_named(bundle, healthy, tmp_path, broken):
    small_bundles.put_artifact(bundle, broken.make(healthy, tmp_path / "broken.onnx"))
    report = verify(bundle)
    assert not report.passed
    names = [cause.name for cause in report.causes]
    assert broken.cause in names[:2], report.causes
    told = next(cause.told for cause in report.causes if cause.name == broken.cause)
    assert broken.told in told
    assert Bundle(bundle).report("parity-onnx-fp32", ParityReport) == report


def truncated(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-64])
    return "cut short"


def located(folder, place):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, folder / "model.onnx")


def outside(folder):
    located(folder, "../model.onnx.data")
    return "outside the folder"


def renamed(folder):
    located(folder, "resnet.onnx.data")
    return "'resnet.onnx.data' is missing"


@pytest.mark.parametrize("fault", [truncated, outside, renamed])
def test_external_data_that_is_not_whole(bundle, healthy, tmp_path, fault):
    folder = tmp_path / "new"
    folder.mkdir()
    model = onnx.load(healthy)
    convert_model_to_external_data(model, location="model.onnx.data", size_threshold=64)
    onnx.save(model, folder / "model.onnx")
    told = fault(folder)
    small_bundles.put_folder(bundle, folder, ("model.onnx", "model.onnx.data"))
    report = verify(bundle)
    assert not report.passed
    assert report.causes[0].name == "external-data"
    assert told in report.causes[0].told


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def texts(request, tmp_path_factory):
    """A small text classifier of random weights, padded texts among its golden samples."""
    folder = tmp_path_factory.mktemp("texts")
    table = folder / "t.csv"
    told = ["the cat sat " * (1 + n % 5) + f"on {n} mats" for n in range(24)]
    lines = [f"{text},{'ab'[n % 2]}" for n, text in enumerate(told)]
    table.write_text("text,label\n" + "\n".join(lines))
    options = TrainOptions(
        task="text-classification",
        backbone=f"transformers/{tiny_text.write(folder / request.param, request.param)}",
        trials=1,
        golden=6,
    )
    train(table, folder / "b", options)
    return folder / "b"


class Unmasked(torch.nn.Module):
    """Padding is attended to and pooled as if it were text."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, input_ids, attention_mask):
        return self.network(input_ids, torch.ones_like(attention_mask) + 0 * attention_mask)


class LastColumn(Pool):
    """The last column, be it padding or not."""

    def forward(self, hidden, mask):
        return hidden[:, -1] + 0 * mask[:, -1:]


def unmasked(network):
    return Unmasked(network)


def last_column(network):
    network.extractor.pool = LastColumn("last")
    return network


def first_token(network):
    network.extractor.pool = Pool("cls")
    return network


@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.parametrize(
    ("change", "causes"),
    [
        (unmasked, {"mask", "padding"}),
        (last_column, {"padding", "node"}),
        (first_token, {"node"}),
        (None, {"constant-axis"}),
    ],
)
def test_texts_are_read_as_the_original_reads_them(texts, tmp_path, change, causes):
    home = Bundle(texts)
    network = networks.network(home)
    network = change(network) if change else network
    golden = home.golden().inputs
    names = [spec.name for spec in home.spec.inputs]
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=64)}
    axes = free if change else {0: free[0]}
    folder = tmp_path / "new"
    folder.mkdir()
    program = torch.onnx.export(
        network.eval(),
        tuple(torch.from_numpy(golden[name][:2]) for name in names),
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(axes, axes) if change is unmasked else ((axes, axes),),
    )
    program.save(folder / "model.onnx", external_data=False)
    small_bundles.put_folder(texts, folder, ("model.onnx",))
    report = verify(texts)
    assert not report.passed
    assert causes & {cause.name for cause in report.causes[:2]}, report.causes
    assert np.isfinite(report.max_abs)
