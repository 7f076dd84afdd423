"""From a model's configuration to an ONNX Runtime session.

Part of the Triton backend `onnxruntime`; see model.py beside it.
"""

import os
import re
from pathlib import Path

import onnxruntime as ort
import tlexport_placement as placement

LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""`optimization.graph.level` as the C++ backend reads it; anything else is ORT_ENABLE_ALL."""

CUDA_CHOICES = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": {},
    "do_copy_in_default_stream": {},
}


class InvalidArgument(Exception):
    """The model cannot be served as configured."""


class InternalError(Exception):
    """ONNX Runtime does not take the model."""


def parameter(config, name, convert, default=None):
    """A parameter of the model's configuration, converted; `default` where it is absent."""
    entry = config.get("parameters", {}).get(name)
    if entry is None:
        return default
    text = entry["string_value"]
    try:
        return convert(text)
    except (ValueError, KeyError) as error:
        kind = "boolean" if convert is boolean else "int number"
        raise InvalidArgument(
            f"parameter '{name}': failed to convert '{text}' to {kind}"
        ) from error


def boolean(text):
    """A truth value as the server's configuration writes it."""
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def model_file(folder, version, config):
    """The ONNX file of a version: the named one, or model.onnx."""
    name = config.get("default_model_filename") or "model.onnx"
    return file_at(Path(folder) / str(version) / name, config)


def file_at(path, config):
    """The ONNX file at a path; where that is a folder, the model.onnx in it."""
    if path.is_dir():
        path = path / "model.onnx"
    if not path.exists():
        raise InvalidArgument(f"unable to find '{path}' for model instance '{config['name']}'")
    return path


def ort_error(error):
    """An error as the C++ backend words it: `onnx runtime error CODE: text`."""
    found = re.match(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", str(error), re.DOTALL)
    return f"onnx runtime error {found[1]}: {found[2]}" if found else str(error)


def accelerators(config, kind):
    """The execution accelerators asked for on this kind of device."""
    found = config.get("optimization", {}).get("execution_accelerators", {})
    return found.get(f"{kind}_execution_accelerator", [])


def providers(config, kind, device):
    """ONNX Runtime's execution providers, in order, and those that must not be lost."""
    chosen = []
    if kind == "GPU":
        for accelerator in accelerators(config, "gpu"):
            chosen.append(_gpu_accelerator(config, accelerator, device))
        if not any(name == "CUDAExecutionProvider" for name, _ in chosen):
            chosen.append(("CUDAExecutionProvider", _cuda_options(config, {}, device)))
    for accelerator in accelerators(config, "cpu"):
        if accelerator["name"] != "openvino":
            raise InvalidArgument(
                f"unknown Execution Accelerator '{accelerator['name']}' is requested"
            )
        chosen.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    for name, _ in chosen:
        if name not in ort.get_available_providers():
            raise InvalidArgument(
                f"'{name}' is requested, but this onnxruntime {ort.__version__} has only "
                f"{', '.join(ort.get_available_providers())}"
            )
    return chosen


def _gpu_accelerator(config, accelerator, device):
    options = dict(accelerator.get("parameters", {}))
    if accelerator["name"] == "cuda":
        return "CUDAExecutionProvider", _cuda_options(config, options, device)
    if accelerator["name"] == "tensorrt":
        return "TensorrtExecutionProvider", _tensorrt_options(options, device)
    raise InvalidArgument(f"unknown Execution Accelerator '{accelerator['name']}' is requested")


def _cuda_options(config, options, device):
    found = {"device_id": str(device)}
    for name, choices in CUDA_CHOICES.items():
        value = parameter(config, name, str)
        if value is not None:
            found[name] = choices.get(value, value)
    found.update(options)
    return found


def _tensorrt_options(options, device):
    found = {"device_id": str(device)}
    precision = options.pop("precision_mode", "FP32")
    if precision not in ("FP32", "FP16", "BF16", "INT8"):
        raise InvalidArgument(f"unsupported precision mode '{precision}' is requested")
    if precision != "FP32":
        found[f"trt_{precision.lower()}_enable"] = "1"
    for name, value in options.items():
        renamed = {"max_workspace_size_bytes": "trt_max_workspace_size"}.get(name, name)
        found[renamed if renamed.startswith("trt_") else f"trt_{renamed}"] = value
    return found


def session_options(config):
    """The session options that the configuration's parameters ask for."""
    options = ort.SessionOptions()
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = LEVELS.get(
        int(level), ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    mode = parameter(config, "execution_mode", int, 0)
    if mode not in (0, 1):
        raise InvalidArgument(
            "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 "
            f"but got {mode} ."
        )
    if mode == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    intra = parameter(config, "intra_op_thread_count", int, 0)
    inter = parameter(config, "inter_op_thread_count", int, 0)
    if intra > 0:
        options.intra_op_num_threads = intra
    if inter > 0:
        options.inter_op_num_threads = inter
    if os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "PASSIVE":
        for pool in ("intra", "inter"):
            options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = parameter(config, "enable_mem_arena", boolean, True)
    options.enable_mem_pattern = parameter(config, "enable_mem_pattern", boolean, True)
    entry = "session.use_device_allocator_for_initializers"
    value = parameter(config, entry, str)
    if value is not None:
        options.add_session_config_entry(entry, value)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        options.register_custom_ops_library(library)
    return options


def open_session(config, path, kind, device):
    """Load the ONNX file; a provider that was asked for and is not in use is a refusal."""
    chosen = providers(config, kind, device)
    if kind == "GPU" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    options = session_options(config)
    if chosen:
        options.add_session_config_entry(placement.RECORD, "1")
    try:
        session = ort.InferenceSession(
            str(path), options, providers=[*chosen, "CPUExecutionProvider"]
        )
    except Exception as error:
        raise InternalError(ort_error(error)) from None
    for name, _ in chosen:
        if name not in session.get_providers():
            raise InvalidArgument(
                f"'{name}' is requested, but onnxruntime {ort.__version__} fell back to "
                f"{', '.join(session.get_providers())}: {_why_not(name)}"
            )
    lost = placement.strayed(session, [name for name, _ in chosen]) if chosen else None
    if lost:
        raise InvalidArgument(
            f"{', '.join(name for name, _ in chosen)} is requested, but onnxruntime "
            f"{ort.__version__} left to the CPU: {placement.told(lost)}; serve it with KIND_CPU, "
            "or export it so that the GPU has these operators"
        )
    return session


def _why_not(provider):
    short = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{short}.so"
    return placement.why_not(library, getattr(ort, "cuda_version", ""))
