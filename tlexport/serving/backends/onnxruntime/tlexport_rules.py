"""The C++ backend's load rules: configuration against model.

Part of the Triton backend `onnxruntime`; see model.py beside it. The wording is the C++ backend's,
so that a search for a message finds the same answer.
"""

import numpy as np
from tlexport_session import InvalidArgument

DTYPES = {
    "tensor(bool)": ("TYPE_BOOL", np.bool_),
    "tensor(uint8)": ("TYPE_UINT8", np.uint8),
    "tensor(uint16)": ("TYPE_UINT16", np.uint16),
    "tensor(uint32)": ("TYPE_UINT32", np.uint32),
    "tensor(uint64)": ("TYPE_UINT64", np.uint64),
    "tensor(int8)": ("TYPE_INT8", np.int8),
    "tensor(int16)": ("TYPE_INT16", np.int16),
    "tensor(int32)": ("TYPE_INT32", np.int32),
    "tensor(int64)": ("TYPE_INT64", np.int64),
    "tensor(float16)": ("TYPE_FP16", np.float16),
    "tensor(float)": ("TYPE_FP32", np.float32),
    "tensor(double)": ("TYPE_FP64", np.float64),
    "tensor(string)": ("TYPE_STRING", np.object_),
}
SEQUENCE_CONTROLS = ("START", "END", "READY", "CORRID")


def text_of(shape):
    """A shape as the server writes it: [-1,3]."""
    return "[" + ",".join(str(size) for size in shape) + "]"


def shape_of(info):
    """Sizes of a tensor of the model; a symbolic axis is -1."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in info.shape]


def numbers(dims):
    """Sizes of a configuration's dims (JSON carries 64-bit numbers as text)."""
    return [int(size) for size in dims]


def dtype_of(info):
    """Data type of a tensor of the model, as a configuration writes it."""
    if info.type not in DTYPES:
        if not info.type.startswith("tensor("):
            raise InvalidArgument(
                f"Unsupported ONNX Type '{info.type}' for I/O '{info.name}', "
                "expected 'ONNX_TYPE_TENSOR'."
            )
        return "TYPE_INVALID"
    return DTYPES[info.type][0]


def refuse_unsupported(config):
    """What the stub protocol cannot carry is refused, never silently left out."""
    name = config["name"]
    if config.get("sequence_batching", {}).get("state"):
        raise InvalidArgument(
            f"unable to load model '{name}', sequence_batching 'state' is not possible in a "
            "Python-based backend; serve it with NVIDIA's image"
        )
    for field in ("batch_input", "batch_output"):
        if config.get(field):
            raise InvalidArgument(
                f"unable to load model '{name}', {field} is not supported by this Python-based "
                "backend; serve it with NVIDIA's image"
            )
    for entry in config["input"]:
        if entry.get("allow_ragged_batch"):
            raise InvalidArgument(
                f"unable to load model '{name}', ragged input '{entry['name']}' is not supported "
                "by this Python-based backend; serve it with NVIDIA's image"
            )
    if config.get("model_transaction_policy", {}).get("decoupled"):
        raise InvalidArgument(
            f"unable to load model '{name}', a decoupled transaction policy has no meaning for "
            "an ONNX model"
        )


def check_inputs(config, session):
    """The rules of the C++ backend for inputs: count, names, types, shapes (loose)."""
    name = config["name"]
    required = {info.name: info for info in session.get_inputs()}
    expected = sum(not entry.get("optional") for entry in config["input"])
    expected += len(sequence_controls(config, required))
    if len(required) != expected:
        raise InvalidArgument(
            f"unable to load model '{name}', configuration expects {expected} inputs, "
            f"model provides {len(required)}"
        )
    known = required | {info.name: info for info in session.get_overridable_initializers()}
    for entry in config["input"]:
        if entry.get("optional") and config["max_batch_size"] != 0:
            raise InvalidArgument(
                f"unable to load model '{name}', optional input '{entry['name']}' is not supported "
                "for models that support batching"
            )
        check_tensor(config, entry, known, "input")
    return known


def sequence_controls(config, known):
    """Names of the control inputs of a sequence model; each must be an input of shape [1]."""
    found = []
    for control in config.get("sequence_batching", {}).get("control_input", []):
        kinds = {entry.get("kind", "CONTROL_SEQUENCE_START") for entry in control["control"]}
        if not kinds & {f"CONTROL_SEQUENCE_{kind}" for kind in SEQUENCE_CONTROLS}:
            continue
        if control["name"] not in known:
            raise InvalidArgument(
                f"configuration specified sequence control '{control['name']}', but model does "
                "not provide that input"
            )
        dims = shape_of(known[control["name"]])[1 if config["max_batch_size"] else 0 :]
        if dims != [1]:
            raise InvalidArgument(
                f"unable to load model '{config['name']}', sequence control '{control['name']}' in "
                f"model has dims {text_of(dims)} but dims [1] is expected"
            )
        found.append(control["name"])
    return found


def check_outputs(config, session):
    """The rules of the C++ backend for outputs: a subset of the model's, exact shapes."""
    known = {info.name: info for info in session.get_outputs()}
    for entry in config["output"]:
        check_tensor(config, entry, known, "output")
    return known


def check_tensor(config, entry, known, side):
    """One tensor of the configuration: it is there, of this type and shape."""
    name, tensor = config["name"], entry["name"]
    if tensor not in known:
        raise InvalidArgument(
            f"unexpected inference {side} '{tensor}', allowed {side}s are: "
            f"{', '.join(sorted(known))}"
        )
    declared, provided = entry["data_type"], dtype_of(known[tensor])
    if declared not in {dtype for dtype, _ in DTYPES.values()}:
        raise InvalidArgument(
            f"unsupported datatype {declared} for {side} '{tensor}' for model '{name}'"
        )
    if declared != provided:
        raise InvalidArgument(
            f"unable to load model '{name}', configuration expects datatype {declared} for {side} "
            f"'{tensor}', model provides {provided}"
        )
    dims = numbers(entry["reshape"].get("shape", []) if "reshape" in entry else entry["dims"])
    shape = shape_of(known[tensor])
    if shape or config["max_batch_size"] > 0:
        check_dims(config, tensor, shape, dims, exact=side == "output")
    elif any(size != 1 for size in dims):
        raise InvalidArgument(
            f"unable to load model '{name}', scalar tensor '{tensor}', should only provide 1 in "
            "the model configuration when the model doesn't support batching. Model configuration "
            f"provided: {text_of(dims)}."
        )


def check_dims(config, tensor, shape, dims, exact):
    """Sizes of configuration and model; a free size of the model takes any, unless exact."""
    head = f"model '{config['name']}', tensor '{tensor}': "
    batching = config["max_batch_size"] > 0
    if batching and (not shape or shape[0] != -1):
        raise InvalidArgument(
            f"{head}for the model to support batching the shape should have at least 1 dimension "
            f"and the first dimension must be -1; but shape expected by the model is "
            f"{text_of(shape)}"
        )
    full = [-1, *dims] if batching else dims
    same = len(full) == len(shape) and all(
        size == wanted for size, wanted in zip(shape, full, strict=True) if exact or size != -1
    )
    if same:
        return
    detail = "shape " + text_of(full)
    if batching:
        detail = (
            "an initial batch dimension because max_batch_size > 0 followed by the explicit "
            f"tensor shape, making complete shape {text_of(full)}"
        )
    raise InvalidArgument(
        f"{head}the model expects {len(shape)} dimensions (shape {text_of(shape)}) but the model "
        f"configuration specifies {len(full)} dimensions ({detail})"
    )
