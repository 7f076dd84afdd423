"""What lint says, the real server says: each broken repository and each odd one, shown to both.

One server takes all that is fully described, another completes the rest. Where the server that
is embedded differs from NVIDIA's C++ backend (a sequence's state, ragged inputs, batch_input,
decoupled answers: refused by ours alone) lint warns, and `test_lint.py` holds the warning.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from serving import broken_models as broken
from serving import legal_models as legal
from serving import small_models as small
from serving.odd_models import LABELLED, lays
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tlexport.options import ServeOptions
from tlexport.serving import choice
from tlexport.serving.lint import lint

WAIT_S = 20


def told(repository: Path, name: str, severity: str = "error") -> list[str]:
    """The rules that lint names for what one case wrote."""
    found = [each for each in lint(repository, cores=2) if each.model.startswith(name)]
    return [each.rule for each in found if each.severity == severity]


@pytest.fixture
def fresh(tmp_path):
    """A repository of one case, for lint alone."""

    def write(lay, name):
        lay(tmp_path / "models", name)
        return tmp_path / "models"

    return write


def refused(server, lay, name):
    repository, _, client = server
    lay(repository, name)
    with pytest.raises(InferenceServerException):
        client.load_model(name, client_timeout=WAIT_S)
    assert not client.is_model_ready(name)


@pytest.mark.parametrize("name", broken.BROKEN)
def test_what_lint_calls_an_error_the_server_refuses(loading_server, fresh, name):
    rule, lay = broken.BROKEN[name]
    assert rule in told(fresh(lay, name), name)
    refused(loading_server, lay, f"broken_{name}")


@pytest.mark.parametrize("name", broken.COMPLETED)
def test_what_cannot_be_completed_is_refused(completing_server, fresh, name):
    rule, lay = broken.COMPLETED[name]
    assert rule in told(fresh(lay, name), name)
    refused(completing_server, lay, f"broken_{name}")


def ask(client, name):
    """One request of zeros, as the model's metadata wants it; its outputs."""
    inputs = []
    metadata = client.get_model_metadata(name)
    for tensor in metadata.inputs:
        shape = [1 if place == 0 else 3 for place, size in enumerate(tensor.shape)]
        shape = [
            chosen if size == -1 else size for chosen, size in zip(shape, tensor.shape, strict=True)
        ]
        inputs.append(grpc.InferInput(tensor.name, shape, tensor.datatype))
        kind = triton_to_np_dtype(tensor.datatype)
        zeros = np.full(shape, b"", object) if kind is np.object_ else np.zeros(shape, kind)
        inputs[-1].set_data_from_numpy(zeros)
    has_sequences = client.get_model_config(name).config.HasField("sequence_batching")
    more = {"sequence_id": 7, "sequence_start": True, "sequence_end": True} if has_sequences else {}
    result = client.infer(name, inputs, client_timeout=WAIT_S, **more)
    return [result.as_numpy(tensor.name) for tensor in metadata.outputs]


def served(server, lay, name):
    repository, _, client = server
    lay(repository, name)
    client.load_model(name, client_timeout=WAIT_S)
    try:
        assert all(array.size for array in ask(client, name))
    finally:
        client.unload_model(name)


@pytest.mark.parametrize("name", legal.LEGAL)
def test_what_the_server_loads_and_answers_lint_lets_pass(loading_server, fresh, name):
    assert told(fresh(legal.LEGAL[name], name), name) == []
    served(loading_server, legal.LEGAL[name], f"legal_{name}")


@pytest.mark.parametrize("name", legal.COMPLETED)
def test_what_the_server_completes_lint_lets_pass(completing_server, fresh, name):
    repository = fresh(legal.COMPLETED[name], name)
    assert told(repository, name) == []
    assert "completed" in told(repository, name, "warning")
    served(completing_server, legal.COMPLETED[name], f"legal_{name}")


@pytest.mark.parametrize("name", [*broken.KILLERS, *broken.UNWARMED])
def test_what_ends_the_server_is_an_error(tmp_path, fresh, name):
    rule, lay = (broken.KILLERS | broken.UNWARMED)[name]
    assert rule in told(fresh(lay, name), name)
    small.lay(tmp_path / "served", "first", small.double(), small.plain())
    options = ServeOptions(control="explicit")
    server, _ = choice.start("embedded", tmp_path / "served", options)
    try:
        lay(tmp_path / "served", name)
        with (
            grpc.InferenceServerClient(server.grpc) as client,
            pytest.raises(InferenceServerException),
        ):
            client.load_model(name, client_timeout=WAIT_S)
        assert ("Signal (6) received" in server.text()) == (name in broken.KILLERS)
    finally:
        server.stop()


# ------------------------------------------------------------------ loaded, and wrong


def labelled(content: bytes):
    return lays(config=small.config(["x FP32 3"], [LABELLED]), labels_dot_txt=content)


@pytest.mark.parametrize(
    ("content", "rule", "answer"),
    [
        (b"a\nb\n", "label-count", b"1.000000:2"),
        (b"a\r\nb\r\nc\r\n", "label-text", b"1.000000:2:c\r"),
        (b"\n\na\nb\nc\n", "label-count", b"1.000000:2:a"),
    ],
)
def test_wrong_labels_are_answered_without_a_word(loading_server, fresh, content, rule, answer):
    """The server loads them and answers another name, or none: an error to lint."""
    assert told(fresh(labelled(content), "labels"), "labels") == [rule]
    repository, _, client = loading_server
    name = f"labels_{len(content)}"
    labelled(content)(repository, name)
    client.load_model(name)
    entry = grpc.InferInput("x", [1, 3], "FP32")
    entry.set_data_from_numpy(np.array([[0.0, 0.1, 0.5]], np.float32))
    wanted = grpc.InferRequestedOutput("y", class_count=1)
    assert client.infer(name, [entry], outputs=[wanted]).as_numpy("y").ravel()[0] == answer


def test_an_output_twice_is_answered_wrongly(loading_server, fresh):
    lay = lays(config=small.config(["x FP32 3"], ["y FP32 3", "y FP32 3"]))
    assert told(fresh(lay, "echo"), "echo") == ["tensor-twice"]
    repository, _, client = loading_server
    lay(repository, "echo")
    client.load_model("echo")
    entry = grpc.InferInput("x", [1, 3], "FP32")
    entry.set_data_from_numpy(np.zeros((1, 3), np.float32))
    shape = client.infer("echo", [entry]).get_response().outputs[0].shape
    assert list(shape) != [1, 3]


def test_labels_outside_the_folder_are_read(loading_server, fresh, tmp_path):
    """The server reads what lies above the model's folder; lint calls that an error."""
    lay = lays(config=small.config(["x FP32 3"], [LABELLED.replace("labels", "../labels")]))
    repository, _, client = loading_server
    for place in (repository, tmp_path / "models"):
        place.mkdir(exist_ok=True)
        (place / "labels.txt").write_text("a\nb\nc\n")
    assert told(fresh(lay, "above"), "above") == ["label-path"]
    lay(repository, "above")
    client.load_model("above")
    assert client.is_model_ready("above")


def test_a_gpu_that_is_not_here_is_a_warning(loading_server, fresh):
    """It may be where it will be served; here the server refuses it."""
    lay = lays(config=small.plain().replace("KIND_CPU", "KIND_GPU"))
    assert told(fresh(lay, "gpu"), "gpu") == []
    assert told(fresh(lay, "gpu2"), "gpu2", "warning") == ["instance-gpu"]
    refused(loading_server, lay, "lint_gpu")


def test_no_case_has_ended_the_shared_server(loading_server):
    """What was loaded first is still there, after all of the above."""
    _, _, client = loading_server
    assert client.is_model_ready("first")
