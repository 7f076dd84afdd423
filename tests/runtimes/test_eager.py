import threading

import numpy as np
import pytest
import small_bundles
import torch

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes import connect


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    small_bundles.plug_task(monkeypatch)
    return Bundle(small_bundles.make(tmp_path / "b"))


@pytest.fixture
def runtime(bundle):
    opened = connect("eager@cpu", bundle, RuntimeOptions(threads=1))
    yield opened
    opened.close()


def test_it_answers_what_the_network_answers(bundle, runtime):
    golden = bundle.golden()
    answer = runtime(golden.inputs)
    assert list(answer) == ["logits"]
    np.testing.assert_allclose(answer["logits"], golden.outputs["logits"], atol=1e-6)
    assert answer["logits"].dtype == np.float32


def test_it_says_what_it_runs_on(bundle, runtime):
    facts = runtime.facts()
    assert facts["version"] == torch.__version__
    assert facts["threads"] == 1
    assert facts["weights_sha256"] == bundle.manifest.weights_sha256
    assert runtime.counters() == {}
    assert runtime.name == "eager@cpu"


def test_threads_are_set_in_every_thread_and_restored(bundle):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runtime = connect("eager@cpu", bundle, RuntimeOptions(threads=1))
        seen = []
        network = runtime._network
        network.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        one = {"images": small_bundles.images(1)}
        thread = threading.Thread(target=runtime, args=(one,))
        thread.start()
        thread.join()
        runtime(one)
        assert seen == [1, 1]
        runtime.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_many_threads_get_their_own_answers(bundle):
    runtime = connect("eager@cpu", bundle, RuntimeOptions(threads=2, instances=2))
    golden, wrong = bundle.golden(), []

    def ask(row):
        for _ in range(20):
            got = runtime({"images": golden.inputs["images"][row : row + 1]})["logits"][0]
            if not np.allclose(got, golden.outputs["logits"][row], atol=1e-6):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runtime.close()
    assert wrong == []


def test_read_only_and_strided_inputs_are_taken(bundle, runtime):
    images = bundle.golden().inputs["images"]
    images.flags.writeable = False
    answer = runtime({"images": images[::2]})["logits"]
    np.testing.assert_allclose(answer, bundle.golden().outputs["logits"][::2], atol=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"pictures": np.zeros((1, 16, 16, 3), np.uint8)},
        {"images": np.zeros((1, 16, 16, 3), np.float32)},
        {"images": np.zeros((1, 17, 16, 3), np.uint8)},
    ],
)
def test_other_inputs_are_refused(runtime, inputs):
    with pytest.raises(SpecError, match="images"):
        runtime(inputs)


@pytest.mark.parametrize("where", ["tpu", "cuda", "cuda:x", "cpu:0"])
def test_other_places_are_refused(bundle, where):
    with pytest.raises(OptionError, match=f"got: eager@{where}"):
        connect(f"eager@{where}", bundle, RuntimeOptions())


def test_a_missing_gpu_is_said_so(bundle, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match="sees no CUDA device"):
        connect("eager@cuda:0", bundle, RuntimeOptions())


def test_it_needs_a_bundle():
    with pytest.raises(OptionError, match="a bundle for eager@cpu"):
        connect("eager@cpu", None, RuntimeOptions())


def test_changed_weights_are_refused(bundle):
    with (bundle.root / "weights.safetensors").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        connect("eager@cpu", bundle, RuntimeOptions())


def test_more_instances_than_threads_are_refused(bundle):
    with pytest.raises(OptionError, match="--instances 3 with 2 threads"):
        connect("eager@cpu", bundle, RuntimeOptions(threads=2, instances=3))


class Broken(small_bundles.Tiny):
    def forward(self, images):
        return super().forward(images) @ torch.zeros(7, 7)


class Twice(small_bundles.Tiny):
    def forward(self, images):
        logits = super().forward(images)
        return logits, logits


@pytest.mark.parametrize(
    ("network", "message"), [(Broken, "inputs the network can take"), (Twice, "2 tensors")]
)
def test_a_network_that_does_not_fit_the_spec(tmp_path, monkeypatch, network, message):
    small_bundles.plug_task(monkeypatch, network)
    bundle = Bundle(small_bundles.make(tmp_path / "b"))
    runtime = connect("eager@cpu", bundle, RuntimeOptions(threads=1))
    with pytest.raises(SpecError, match=message):
        runtime({"images": small_bundles.images(1)})
    runtime.close()


def test_closed_is_closed(bundle):
    runtime = connect("eager@cpu", bundle, RuntimeOptions(threads=1))
    runtime.close()
    with pytest.raises(OptionError, match="closed"):
        runtime({"images": small_bundles.images(1)})
