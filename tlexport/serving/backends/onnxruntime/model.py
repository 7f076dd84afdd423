"""Triton backend `onnxruntime`, written in Python.

Triton's core loads this file where no `libtriton_onnxruntime.so` is found, and so serves the very
repository that NVIDIA's image serves with its C++ backend. It runs in a process of the server's
own, one per model instance, and imports nothing of ours but the two files beside it: numpy,
onnxruntime and the server's stub are all it needs. What it accepts, refuses and reads follows the
C++ backend; where it cannot follow, it refuses with the reason.
"""

import json
from pathlib import Path

import numpy as np

if int(np.__version__.split(".")[0]) >= 2:
    raise RuntimeError(
        f"numpy {np.__version__} in the server's environment: its stubs need numpy below 2 "
        "and would answer with empty tensors"
    )

import onnxruntime as ort
import tlexport_rules as rules
import triton_python_backend_utils as pb_utils
from tlexport_session import (
    InvalidArgument,
    file_at,
    model_file,
    open_session,
    ort_error,
    parameter,
)

DEFAULT_MAX_BATCH = 4
"""What the server gives the C++ backend as `default-max-batch-size`."""


class TritonPythonModel:
    """One instance of one model: the class the server's stub looks for."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Fill in what the C++ backend would: batch size, scheduler, inputs and outputs."""
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        session = open_session({**config, "parameters": {}}, _told_file(config), "CPU", 0)
        sides = {"input": session.get_inputs(), "output": session.get_outputs()}
        _complete_batching(auto_complete_model_config, config, sides)
        for side, infos in sides.items():
            if not config[side]:
                config[side] = [
                    _described(info, config["max_batch_size"])
                    for info in sorted(infos, key=lambda info: info.name)
                ]
        return auto_complete_model_config

    def initialize(self, args):
        """Load the model and hold it against its configuration."""
        config = json.loads(args["model_config"])
        rules.refuse_unsupported(config)
        path = model_file(args["model_repository"], args["model_version"], config)
        kind, device = args["model_instance_kind"], args["model_instance_device_id"]
        self.session = open_session(config, path, kind, device)
        inputs = rules.check_inputs(config, self.session)
        outputs = rules.check_outputs(config, self.session)
        self.batching = config["max_batch_size"] > 0
        self.names = [entry["name"] for entry in config["output"]]
        self.scalar_inputs = {name for name, info in inputs.items() if not info.shape}
        self.scalar_outputs = {name for name in self.names if not outputs[name].shape}
        self.texts = {name for name, info in inputs.items() if info.type == "tensor(string)"}
        self.run_options = ort.RunOptions()
        entry = "memory.enable_memory_arena_shrinkage"
        shrink = parameter(config, entry, str)
        if shrink is not None:
            self.run_options.add_run_config_entry(entry, shrink)

    def execute(self, requests):
        """Answer every request, in order; requests of equal shapes share one run."""
        if len(requests) == 1:
            return [self._alone(requests[0])]
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            try:
                feeds = self._feeds(request)
            except Exception as error:
                responses[index] = _refusal(error)
                continue
            shapes = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
            key = shapes if self.batching else index
            groups.setdefault(key, []).append((index, feeds))
        for group in groups.values():
            for index, response in self._together(requests, group):
                responses[index] = response
        return responses

    def _together(self, requests, group):
        """One run for the requests of a group; where it fails, each is run by itself."""
        if len(group) == 1:
            index, feeds = group[0]
            return [(index, self._answer(requests[index], feeds))]
        sizes = [len(next(iter(feeds.values()))) for _, feeds in group]
        joined = {name: np.concatenate([feeds[name] for _, feeds in group]) for name in group[0][1]}
        wanted = self._wanted(requests[index] for index, _ in group)
        try:
            outputs = dict(zip(wanted, self._run(wanted, joined), strict=True))
            rows = sum(sizes)
            for name, output in outputs.items():
                if len(output) != rows:
                    raise InvalidArgument(
                        f"output '{name}' has {len(output)} rows for {rows} of input"
                    )
        except Exception:
            return [(index, self._answer(requests[index], feeds)) for index, feeds in group]
        answers, start = [], 0
        for (index, _), size in zip(group, sizes, strict=True):
            mine = self._wanted([requests[index]])
            cut = [outputs[name][start : start + size] for name in mine]
            answers.append((index, _response(mine, cut)))
            start += size
        return answers

    def _alone(self, request):
        try:
            feeds = self._feeds(request)
        except Exception as error:
            return _refusal(error)
        return self._answer(request, feeds)

    def _answer(self, request, feeds):
        wanted = self._wanted([request])
        try:
            return _response(wanted, self._run(wanted, feeds))
        except Exception as error:
            return _refusal(error)

    def _run(self, wanted, feeds):
        outputs = self.session.run(wanted, feeds, self.run_options)
        if self.scalar_outputs:
            outputs = [
                np.reshape(output, 1) if name in self.scalar_outputs else output
                for name, output in zip(wanted, outputs, strict=True)
            ]
        return outputs

    def _wanted(self, requests):
        """Outputs that any of the requests asks for, in the configuration's order."""
        asked = set()
        for request in requests:
            asked.update(request.requested_output_names())
        return [name for name in self.names if name in asked]

    def _feeds(self, request):
        feeds = {}
        for tensor in request.inputs():
            name = tensor.name()
            array = tensor.as_numpy()
            if name in self.texts:
                array = _text(name, array)
            feeds[name] = array.reshape(()) if name in self.scalar_inputs else array
        return feeds


def _response(names, arrays):
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in zip(names, arrays, strict=True)]
    )


def _refusal(error):
    return pb_utils.InferenceResponse([], pb_utils.TritonError(ort_error(error)))


def _text(name, array):
    """BYTES as str objects: ONNX Runtime's Python API takes nothing else."""
    texts = np.empty(array.shape, dtype=np.object_)
    try:
        texts.flat = [item.decode("utf-8") for item in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"bad input '{name}': {error}") from error
    return texts


def _told_file(config):
    """The model's file from the stub's own command line: auto-completion is told it nowhere else.

    The stub is started as: stub, path of the model's file, names of shared memory ...
    """
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return file_at(Path(arguments[1].decode()), config)


def _complete_batching(completed, config, sides):
    shapes = [rules.shape_of(info) for infos in sides.values() for info in infos]
    if all(shape and shape[0] == -1 for shape in shapes):
        if config["max_batch_size"] == 0:
            completed.set_max_batch_size(DEFAULT_MAX_BATCH)
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            completed.set_dynamic_batching()
    elif config["max_batch_size"] != 0:
        raise InvalidArgument(
            f"autofill failed for model '{config['name']}': model does not support batching while "
            "non-zero max_batch_size is specified"
        )


def _described(info, max_batch_size):
    """A tensor of the model as a block of the configuration."""
    dims = rules.shape_of(info)[1 if max_batch_size > 0 else 0 :]
    block = {"name": info.name, "data_type": rules.dtype_of(info), "dims": dims}
    if not dims:
        block["dims"] = [1]
        if max_batch_size > 0:
            block["reshape"] = {"shape": []}
    return block
