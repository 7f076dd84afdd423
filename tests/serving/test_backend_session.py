"""What the backend reads from a configuration, without a server around it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from serving import small_models


def config(**changes):
    found = {"name": "m", "max_batch_size": 8, "input": [], "output": [], "parameters": {}}
    return found | changes


def parameters(**values):
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (None, "ORT_ENABLE_ALL"),
        (0, "ORT_ENABLE_ALL"),
        (-1, "ORT_ENABLE_BASIC"),
        (1, "ORT_ENABLE_EXTENDED"),
        (2, "ORT_DISABLE_ALL"),
    ],
)
def test_graph_level(backend_session, level, name):
    graph = {} if level is None else {"optimization": {"graph": {"level": level}}}
    options = backend_session.session_options(config(**graph))
    assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, name)


def test_idle_threads_do_not_spin_where_openmp_s_may_not(backend_session, monkeypatch):
    entry = "session.intra_op.allow_spinning"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert backend_session.session_options(config()).get_session_config_entry(entry) == "0"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with pytest.raises(RuntimeError):
        backend_session.session_options(config()).get_session_config_entry(entry)


def test_parameters(backend_session):
    options = backend_session.session_options(config())
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (0, 0)
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.enable_cpu_mem_arena
    assert options.enable_mem_pattern
    given = parameters(
        intra_op_thread_count="3",
        inter_op_thread_count="2",
        execution_mode="1",
        enable_mem_arena="false",
        enable_mem_pattern="0",
    )
    options = backend_session.session_options(config(**given))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


def test_a_parameter_that_is_no_truth_value(backend_session):
    with pytest.raises(backend_session.InvalidArgument, match="failed to convert 'maybe' to bool"):
        backend_session.session_options(config(**parameters(enable_mem_arena="maybe")))


def accelerated(name, **values):
    entry = {"name": name, "parameters": values}
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}}


def test_gpu_providers_and_their_options(backend_session, monkeypatch):
    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: every)
    told = parameters(gpu_mem_limit="1000", arena_extend_strategy="1", cudnn_conv_algo_search="2")
    assert backend_session.providers(config(**told), "GPU", 1) == [
        (
            "CUDAExecutionProvider",
            {
                "device_id": "1",
                "cudnn_conv_algo_search": "DEFAULT",
                "arena_extend_strategy": "kSameAsRequested",
                "gpu_mem_limit": "1000",
            },
        )
    ]
    given = accelerated(
        "tensorrt", precision_mode="FP16", max_workspace_size_bytes="9", trt_engine_cache_enable="1"
    )
    chosen = backend_session.providers(config(**given), "GPU", 0)
    assert [name for name, _ in chosen] == every[:2]
    assert chosen[0][1] == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "9",
        "trt_engine_cache_enable": "1",
    }
    assert backend_session.providers(config(**given), "CPU", 0) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (accelerated("warp"), "unknown Execution Accelerator 'warp' is requested"),
        (accelerated("tensorrt", precision_mode="FP3"), "unsupported precision mode 'FP3'"),
    ],
)
def test_gpu_accelerators_that_are_refused(backend_session, given, message):
    with pytest.raises(backend_session.InvalidArgument, match=message):
        backend_session.providers(config(**given), "GPU", 0)


def test_a_gpu_that_is_not_in_use_is_refused(backend_session, tmp_path):
    """An instance on a GPU must run there, or the model must not load."""
    onnx.save(small_models.double(), tmp_path / "model.onnx")
    path = tmp_path / "model.onnx"
    if Path("/proc/driver/nvidia").exists():
        session = backend_session.open_session(config(), path, "GPU", 0)
        assert "CUDAExecutionProvider" in session.get_providers()
        return
    with pytest.raises(
        (backend_session.InvalidArgument, backend_session.InternalError),
        match=r"CUDAExecutionProvider|CUDA",
    ):
        backend_session.open_session(config(), path, "GPU", 0)


def test_errors_are_worded_as_by_the_c_backend(backend_session):
    raised = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions"
    assert backend_session.ort_error(raised) == "onnx runtime error 2: Got invalid dimensions"
    assert backend_session.ort_error("other") == "other"
