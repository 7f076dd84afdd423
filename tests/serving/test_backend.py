"""The Python-based backend `onnxruntime` in a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from onnx import TensorProto
from serving import small_models as small
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tlexport.serving import refusals
from tlexport.spec import TRITON_DTYPES


@pytest.fixture
def ask(shared_server):
    """Ask the shared server: (model, arrays, wanted outputs) -> arrays; safe from threads."""
    client = grpc.InferenceServerClient(shared_server.grpc)

    def call(model, arrays, wanted=None, **more):
        inputs = []
        for name, array in arrays.items():
            inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        outputs = [grpc.InferRequestedOutput(name) for name in wanted] if wanted else None
        result = client.infer(model, inputs, outputs=outputs, **more)
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}

    call.client = client
    yield call
    client.close()


def executions(client, model):
    return client.get_inference_statistics(model).model_stats[0].execution_count


def together(call, arguments):
    """Call with each of the arguments at once; results or exceptions, in order."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        futures = [pool.submit(call, *each) for each in arguments]
        return [future.exception() or future.result() for future in futures]


def test_every_dtype_keeps_its_values(ask):
    rng = np.random.default_rng(0)
    arrays = {}
    for name in small.DTYPES:
        values = rng.integers(0, 2 if name == "bool" else 100, (3, 2))
        arrays[f"in_{name}"] = values.astype(name)
    answers = ask("types", arrays)
    for name in small.DTYPES:
        answer = answers[f"out_{name}"]
        assert answer.dtype.name == name
        assert np.array_equal(answer, arrays[f"in_{name}"])


def test_http_binary_and_json_answer_alike(shared_server):
    array = np.array([[1, 2]], np.float32)
    with http.InferenceServerClient(shared_server.http) as client:
        for binary in (True, False):
            entries = []
            for name in small.DTYPES:
                if name == "float16":
                    continue  # JSON has no half precision; the protocol does not carry it
                kind = np_to_triton_dtype(np.dtype(name))
                entries.append(http.InferInput(f"in_{name}", array.shape, kind))
                entries[-1].set_data_from_numpy(array.astype(name), binary_data=binary)
            half = http.InferInput("in_float16", array.shape, "FP16")
            half.set_data_from_numpy(array.astype(np.float16))
            result = client.infer(
                "types",
                [*entries, half],
                outputs=[http.InferRequestedOutput("out_float32", binary_data=binary)],
            )
            assert np.array_equal(result.as_numpy("out_float32"), array)


def test_texts_of_any_language_and_empty_ones(ask):
    texts = np.array([["é文ab", ""], ["plain", "a\0b"]], dtype=object)
    answer = ask("text", {"x": texts})["y"]
    assert [[item.decode() for item in row] for row in answer] == texts.tolist()


def test_bytes_that_are_no_text_are_refused_and_batch_mates_are_not(ask):
    good = {"x": np.array([["fine", "too"]], dtype=object)}
    bad = {"x": np.array([[b"\xff\xfe", b"x"]], dtype=object)}
    results = together(ask, [("text", good), ("text", bad), ("text", good)])
    assert "bad input 'x': 'utf-8' codec can't decode" in str(results[1])
    for result in (results[0], results[2]):
        assert result["y"].tolist() == [[b"fine", b"too"]]


def test_scalars_and_columns(ask):
    assert ask("scalar", {"x": np.array([21], np.float32)})["y"].tolist() == [42]
    answer = ask("column", {"x": np.array([[1], [2], [3]], np.float32)})["y"]
    assert answer.tolist() == [[2], [4], [6]]


def test_requests_sent_together_run_together(ask):
    before = executions(ask.client, "double")
    arrays = [{"x": np.full((1, 3), value, np.float32)} for value in range(8)]
    results = together(ask, [("double", array) for array in arrays])
    for value, result in enumerate(results):
        assert result["y"].tolist() == [[2 * value] * 3]
    assert executions(ask.client, "double") - before < 8


def test_batches_of_several_rows_are_cut_apart_rightly(ask):
    sizes = (3, 1, 2)
    arrays = [
        {"x": np.arange(size * 3, dtype=np.float32).reshape(size, 3) + size} for size in sizes
    ]
    results = together(ask, [("double", array) for array in arrays])
    for array, result in zip(arrays, results, strict=True):
        assert np.array_equal(result["y"], array["x"] * 2)


def test_requests_of_other_widths_wait_together_and_run_apart(ask):
    arrays = [
        {"a": np.full((1, width), 3, np.float32), "b": np.ones((1, width), np.float32)}
        for width in (2, 5, 2, 5)
    ]
    for array, result in zip(
        arrays, together(ask, [("pair", array) for array in arrays]), strict=True
    ):
        assert np.array_equal(result["sum"], array["a"] + array["b"])
        assert np.array_equal(result["rest"], array["a"] - array["b"])


def test_only_the_outputs_asked_for(ask):
    arrays = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    assert list(ask("pair", arrays, ["rest"])) == ["rest"]
    results = together(ask, [("pair", arrays, ["sum"]), ("pair", arrays, ["rest"])])
    assert [list(result) for result in results] == [["sum"], ["rest"]]


def test_a_failing_request_does_not_fail_its_batch_mates(ask):
    asked = [("pick", {"x": np.array([[value]], np.int64)}) for value in (1, 99, 3)]
    results = together(ask, asked)
    assert "onnx runtime error 2: " in str(results[1])
    assert results[0]["y"].tolist() == [[1]]
    assert results[2]["y"].tolist() == [[3]]


def test_an_optional_input_may_be_left_out(ask):
    x = np.arange(3, dtype=np.float32)
    assert ask("offered", {"x": x})["y"].tolist() == [10, 11, 12]
    assert ask("offered", {"x": x, "bias": x})["y"].tolist() == [0, 2, 4]


def test_another_file_name_and_every_parameter(ask):
    for model in ("renamed", "tuned"):
        assert ask(model, {"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2] * 3] * 2


def test_sequence_controls_are_given_to_the_model(ask):
    array = np.array([[5]], np.float32)
    first = ask("steps", {"x": array}, sequence_id=7, sequence_start=True)
    second = ask("steps", {"x": array}, sequence_id=7, sequence_end=True)
    assert (first["y"].item(), second["y"].item()) == (6, 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((1, 4), np.float32)}, r"unexpected shape for input 'x'"),
        ({"x": np.ones((9, 3), np.float32)}, r"batch-size must be <= 8"),
        ({"x": np.ones((1, 3), np.float64)}, r"data-type"),
        ({"z": np.ones((1, 3), np.float32)}, r"unexpected inference input 'z'|expected 1 inputs"),
    ],
)
def test_malformed_requests_are_refused_and_the_server_goes_on(ask, arrays, message):
    with pytest.raises(InferenceServerException, match=message):
        ask("double", arrays)
    assert ask("double", {"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 3)


# ------------------------------------------------------------------ loading

FLOAT = TensorProto.FLOAT
RAGGED = "x FP32 -1 allow_ragged_batch: true"
STATE = (
    'sequence_batching { state [ { input_name: "x" output_name: "y" data_type: TYPE_FP32 '
    "dims: [ 3 ] } ] }\n"
)


def accelerated(name: str) -> str:
    return (
        "optimization { execution_accelerators { cpu_execution_accelerator "
        f'[ {{ name: "{name}" }} ] }} }}\n'
    )


REFUSALS = {
    "dtype": (
        small.double(),
        small.config(["x INT64 3"], ["y FP32 3"]),
        "unable to load model 'dtype', configuration expects datatype TYPE_INT64 for input 'x', "
        "model provides TYPE_FP32",
    ),
    "dims": (
        small.double(),
        small.config(["x FP32 4"], ["y FP32 3"]),
        "model 'dims', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model "
        "configuration specifies 2 dimensions (an initial batch dimension because max_batch_size "
        "> 0 followed by the explicit tensor shape, making complete shape [-1,4])",
    ),
    "rank": (
        small.double((2, 3)),
        small.config(["x FP32 3"], ["y FP32 2,3"], max_batch=0),
        "model 'rank', tensor 'x': the model expects 2 dimensions (shape [2,3]) but the model "
        "configuration specifies 1 dimensions (shape [3])",
    ),
    "free_output": (
        small.double(("batch", "width")),
        small.config(["x FP32 3"], ["y FP32 3"]),
        "tensor 'y': the model expects 2 dimensions (shape [-1,-1])",
    ),
    "fixed_batch": (
        small.double((1, 3)),
        small.plain(),
        "for the model to support batching the shape should have at least 1 dimension and the "
        "first dimension must be -1; but shape expected by the model is [1,3]",
    ),
    "count": (
        small.double(),
        small.config(["x FP32 3", "w FP32 3"], ["y FP32 3"]),
        "unable to load model 'count', configuration expects 2 inputs, model provides 1",
    ),
    "unknown_input": (
        small.double(),
        small.config(["w FP32 3"], ["y FP32 3"]),
        "unexpected inference input 'w', allowed inputs are: x",
    ),
    "unknown_output": (
        small.double(),
        small.config(["x FP32 3"], ["w FP32 3"]),
        "unexpected inference output 'w', allowed outputs are: y",
    ),
    "optional": (
        small.double(),
        small.config(["x FP32 3 optional: true"], ["y FP32 3"]),
        "configuration expects 0 inputs, model provides 1",
    ),
    "mode": (
        small.double(),
        small.plain(more=small.parameters({"execution_mode": "2"})),
        "Expected values for  execution_mode are 0 or 1 but got 2 .",
    ),
    "number": (
        small.double(),
        small.plain(more=small.parameters({"inter_op_thread_count": "many"})),
        "parameter 'inter_op_thread_count': failed to convert 'many' to int number",
    ),
    "accelerator": (
        small.double(),
        small.plain(more=accelerated("warp")),
        "unknown Execution Accelerator 'warp' is requested",
    ),
    "corrupt": (b"\x08\x0a\x12 not a model", small.plain(), "Protobuf parsing failed"),
    "cut": (
        small.double().SerializeToString()[:-20],
        small.plain(),
        "onnx runtime error 7: Load model from",
    ),
    "new_ir": (
        small.double(ir_version=99),
        small.plain(),
        "Unsupported model IR version: 99, max supported IR version: ",
    ),
    "new_opset": (
        small.double(opset=99),
        small.plain(),
        "Current official support for domain ai.onnx is till opset",
    ),
    "ragged": (
        small.double(("batch",)),
        small.config([RAGGED], ["y FP32 1 reshape {}"]),
        "ragged input 'x' is not supported by this Python-based backend",
    ),
    "state": (
        small.double(),
        small.plain(more=STATE),
        "sequence_batching 'state' is not possible in a Python-based backend",
    ),
    "nothing": (None, small.plain(), "unable to find '"),
    "half_brain": (
        small.build(
            [("Identity", ["x"], ["y"])],
            [("x", TensorProto.BFLOAT16, ["batch", 3])],
            [("y", TensorProto.BFLOAT16, ["batch", 3])],
        ),
        small.config(["x BF16 3"], ["y BF16 3"]),
        "unsupported datatype TYPE_BF16 for input 'x' for model 'half_brain'",
    ),
    "gpu": (
        small.double(),
        small.plain().replace("KIND_CPU", "KIND_GPU"),
        "has kind KIND_GPU but no GPUs are available",
    ),
    "preferred": (
        small.double(),
        small.plain(more="dynamic_batching { preferred_batch_size: 9 }\n"),
        "dynamic batching preferred size must be <= max batch size",
    ),
    "labels": (
        small.double(),
        small.config(["x FP32 3"], ['y FP32 3 label_filename: "labels.txt"']),
        "labels.txt",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_c_backend_refuses_is_refused_with_its_words(loading_server, name):
    repository, server, client = loading_server
    model, config, message = REFUSALS[name]
    small.lay(repository, name, model, config)
    with pytest.raises(InferenceServerException):
        client.load_model(name)
    assert message in refusals.refused(server.text())[name]
    assert not client.is_model_ready(name)


def test_missing_data_file_is_named(loading_server):
    repository, _, client = loading_server
    model = small.build(
        [("Add", ["x", "bias"], ["y"])],
        [("x", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["batch", 3])],
        [("bias", np.ones(3, np.float32))],
    )
    place = small.lay(repository, "apart", None, small.plain()) / "1/model.onnx"
    place.mkdir()
    onnx.save_model(
        model, place / "model.onnx", save_as_external_data=True, location="far", size_threshold=0
    )
    (place / "far").rename(repository.parent / "far")
    with pytest.raises(InferenceServerException, match="far"):
        client.load_model("apart")
    (repository.parent / "far").rename(place / "far")
    client.load_model("apart")
    assert client.is_model_ready("apart")


def test_without_a_configuration_it_is_completed_as_the_c_backend_does(completing_server):
    _, _, client = completing_server
    config = client.get_model_config("first").config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [(i.name, list(i.dims)) for i in config.input] == [("x", [3])]
    assert [(o.name, list(o.dims)) for o in config.output] == [("y", [3])]


def test_a_column_is_completed_with_a_reshape_and_fixed_shapes_without_batching(completing_server):
    repository, _, client = completing_server
    small.lay(repository, "column", small.double(("batch",)), 'backend: "onnxruntime"\n')
    client.load_model("column")
    block = client.get_model_config("column").config.output[0]
    assert list(block.dims) == [1]
    assert block.HasField("reshape")
    small.lay(repository, "fixed", small.double((2, 3)), None)
    client.load_model("fixed")
    config = client.get_model_config("fixed").config
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3])


def test_a_batch_that_the_model_cannot_take_is_not_completed(completing_server):
    repository, server, client = completing_server
    config = 'backend: "onnxruntime"\nmax_batch_size: 4\n'
    small.lay(repository, "stiff", small.double((1, 3)), config)
    with pytest.raises(InferenceServerException):
        client.load_model("stiff")
    assert refusals.refused(server.text())["stiff"] == (
        "Internal: InvalidArgument: autofill failed for model 'stiff': model does not support "
        "batching while non-zero max_batch_size is specified"
    )


def test_dtype_table_is_the_one_of_the_package(backend_rules):
    ours = {kind.removeprefix("TYPE_") for kind, _ in backend_rules.DTYPES.values()}
    assert ours == {"STRING" if name == "BYTES" else name for name in TRITON_DTYPES.values()}
