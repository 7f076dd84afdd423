import threading

import numpy as np
import onnx
import pytest
import small_bundles
from onnx import TensorProto, helper

from tlexport.bundle import Bundle
from tlexport.errors import (
    BundleError,
    ExportError,
    MissingDependency,
    OptionError,
    SpecError,
)
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect
from tlexport.runtimes import ort as ort_runtime


@pytest.fixture
def bundle(tmp_path):
    return Bundle(small_bundles.make(tmp_path / "b", small_bundles.healthy_onnx()))


@pytest.fixture
def runtime(bundle):
    opened = connect("ort@cpu", bundle, RuntimeOptions(threads=1))
    yield opened
    opened.close()


def with_onnx(tmp_path, **changes):
    """A bundle whose artifact is one Cast-and-Reduce graph, declared as `changes` say."""
    wanted = {
        "input": ("images", TensorProto.UINT8, ["batch", 16, 16, 3]),
        "output": ("logits", TensorProto.FLOAT, ["batch", 4]),
    } | changes
    name, kind, shape = wanted["input"]
    out, out_kind, out_shape = wanted["output"]
    nodes = [
        helper.make_node("Cast", [name], ["c"], to=out_kind),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("Slice", ["r", "zero", "end", "one"], [out]),
    ]
    ints = {"flat": [-1, 768], "zero": [0], "end": [out_shape[1]], "one": [1]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(out, out_kind, out_shape)],
        [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in ints.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "odd.onnx")
    return Bundle(small_bundles.make(tmp_path / "odd", tmp_path / "odd.onnx"))


@pytest.mark.parametrize(("policy", "spinning"), [("PASSIVE", "0"), ("passive ", "0"), ("", None)])
def test_idle_threads_do_not_spin_where_openmp_s_may_not(bundle, monkeypatch, policy, spinning):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    opened = []
    real = ort_runtime.ort.InferenceSession

    def session(file, settings, **more):
        opened.append(settings)
        return real(file, settings, **more)

    monkeypatch.setattr(ort_runtime.ort, "InferenceSession", session)
    connect("ort@cpu", bundle, RuntimeOptions(threads=2)).close()
    (settings,) = opened
    entry = "session.intra_op.allow_spinning"
    if spinning is None:
        with pytest.raises(RuntimeError):
            settings.get_session_config_entry(entry)
    else:
        assert settings.get_session_config_entry(entry) == spinning


def test_it_answers_what_the_network_answers(bundle, runtime):
    golden = bundle.golden()
    answer = runtime(golden.inputs)
    np.testing.assert_allclose(answer["logits"], golden.outputs["logits"], atol=1e-6)


def test_it_says_what_it_runs_on(bundle, runtime):
    facts = runtime.facts()
    assert facts["providers"] == ["CPUExecutionProvider"]
    assert facts["threads"] == 1
    assert facts["artifact_sha256"] == bundle.artifact("onnx-fp32").sha256
    assert runtime.counters() == {}


def test_instances_share_the_threads_and_answer_at_once(bundle):
    runtime = connect("ort@cpu", bundle, RuntimeOptions(threads=2, instances=2))
    assert runtime.facts()["threads"] == 1
    golden, wrong = bundle.golden(), []

    def ask(row):
        for _ in range(50):
            got = runtime({"images": golden.inputs["images"][row : row + 1]})["logits"][0]
            if not np.allclose(got, golden.outputs["logits"][row], atol=1e-6):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runtime.close()
    assert wrong == []


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"images": np.zeros((1, 16, 16, 3), np.float32)},
        {"images": np.zeros((1, 16, 15, 3), np.uint8)},
    ],
)
def test_other_inputs_are_refused(runtime, inputs):
    with pytest.raises(SpecError, match="images"):
        runtime(inputs)


def test_a_constant_batch_axis_is_named_when_it_hurts(tmp_path):
    frozen = {"input": ("images", TensorProto.UINT8, [2, 16, 16, 3])}
    runtime = connect("ort@cpu", with_onnx(tmp_path, **frozen), RuntimeOptions())
    assert len(runtime({"images": small_bundles.images(2)})["logits"]) == 2
    with pytest.raises(SpecError, match="constant in the file") as told:
        runtime({"images": small_bundles.images(3)})
    assert "[3, 16, 16, 3]" in told.value.expected
    assert "Got: 3 Expected: 2" in told.value.got
    runtime.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": ("scores", TensorProto.FLOAT, ["batch", 4])}, "scores float32"),
        ({"output": ("logits", TensorProto.FLOAT, ["batch", 5])}, r"logits float32 \[batch, 5\]"),
        ({"output": ("logits", TensorProto.DOUBLE, ["batch", 4])}, "logits float64"),
        ({"input": ("images", TensorProto.FLOAT, ["batch", 16, 16, 3])}, "images float32"),
        ({"input": ("images", TensorProto.UINT8, ["batch", 3, 16, 16])}, r"\[batch, 3, 16, 16\]"),
        ({"input": ("images", TensorProto.UINT8, ["batch", 768])}, r"\[batch, 768\]"),
    ],
)
def test_a_file_of_another_model_answers_nothing(tmp_path, changes, message):
    runtime = connect("ort@cpu", with_onnx(tmp_path, **changes), RuntimeOptions())
    with pytest.raises(SpecError, match=message):
        runtime({"images": small_bundles.images(1)})
    runtime.close()


def test_a_file_that_is_no_onnx_is_an_export_error(tmp_path, bundle, capfd):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    small_bundles.put_artifact(bundle.root, tmp_path / "junk.onnx")
    with pytest.raises(ExportError, match="INVALID_PROTOBUF"):
        connect("ort@cpu", bundle, RuntimeOptions())
    assert capfd.readouterr() == ("", "")


def test_a_changed_file_is_refused(bundle):
    file = bundle.artifact_file(bundle.artifact("onnx-fp32"))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="onnx-fp32 with sha256"):
        connect("ort@cpu", bundle, RuntimeOptions())


def test_a_missing_artifact_names_those_there_are(bundle):
    with pytest.raises(BundleError, match="got: onnx-fp32"):
        connect("ort@cpu", bundle, RuntimeOptions(artifact="onnx-int8"))


@pytest.mark.parametrize("where", ["gpu", "cuda", "cuda:-1"])
def test_other_places_are_refused(bundle, where):
    with pytest.raises(OptionError, match=f"got: ort@{where}"):
        connect(f"ort@{where}", bundle, RuntimeOptions())


def test_no_silent_fallback_from_the_gpu(bundle, capfd, monkeypatch):
    """Without a GPU the session is a CPU session, and ONNX Runtime only logs it; we refuse."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MissingDependency, match="fell back to CPUExecutionProvider") as told:
        connect("ort@cuda:0", bundle, RuntimeOptions())
    assert "lib" in told.value.got or "device" in told.value.got
    assert capfd.readouterr() == ("", "")


def test_it_needs_a_bundle():
    with pytest.raises(OptionError, match="a bundle for ort@cpu"):
        connect("ort@cpu", None, RuntimeOptions())


def test_closed_is_closed(bundle):
    runtime = connect("ort@cpu", bundle, RuntimeOptions())
    runtime.close()
    with pytest.raises(OptionError, match="closed"):
        runtime({"images": small_bundles.images(1)})


@pytest.mark.parametrize(("where", "level"), [("cpu", "ENABLE_ALL"), ("cpu-plain", "DISABLE_ALL")])
def test_plain_optimises_nothing(bundle, monkeypatch, where, level):
    asked = []
    load = ort_runtime._load

    def spy(file, settings, providers):
        asked.append(settings.graph_optimization_level.name)
        return load(file, settings, providers)

    monkeypatch.setattr(ort_runtime, "_load", spy)
    opened = connect(f"ort@{where}", bundle, RuntimeOptions())
    wanted = small_bundles.answers(small_bundles.Tiny().eval(), small_bundles.images(3))
    found = opened({"images": small_bundles.images(3)})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert asked == [f"ORT_{level}"]
    assert opened.name == f"ort@{where}"
    assert ("opened_sha256" in opened.facts()) == (where == "cpu")
