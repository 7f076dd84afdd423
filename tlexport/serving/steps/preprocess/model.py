"""Pipeline step: raw items to the model's inputs.

Runs in the server's own process with numpy and the decoder that the file beside it imports: the
very file that training read its examples with. All items of all requests that the server hands
over are decoded together and padded to one length, so that the model can batch them again.

step.json    {"module": file, "numbers": what it takes, "files": names below files/}
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
RAW, ERROR = "raw", "error"
FIX = "send the content itself, not its name and not base64; mend this item or leave it out"


class TritonPythonModel:
    """The class the server's stub looks for."""

    def initialize(self, args):
        """Import the decoder and read its numbers and files."""
        config = json.loads(args["model_config"])
        self.threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        os.environ.setdefault("RAYON_NUM_THREADS", str(self.threads))  # of the tokenizer
        told = json.loads((HERE / "step.json").read_text("utf-8"))
        self.numbers = told["numbers"]
        self.files = {name: (HERE / "files" / name).read_bytes() for name in told["files"]}
        self.reader = _imported(HERE / told["module"])
        self.dtypes = {
            entry["name"]: np.dtype(pb_utils.triton_string_to_numpy(entry["data_type"]))
            for entry in config["output"]
            if entry["name"] != ERROR
        }

    def execute(self, requests):
        """Read all items together; a request of one bad item is refused, others are told of it."""
        asked = [
            pb_utils.get_input_tensor_by_name(request, RAW).as_numpy().reshape(-1).tolist()
            for request in requests
        ]
        items = [item for each in asked for item in each]
        try:
            arrays, broken = self._read(items)
        except Exception as error:
            return [_refusal(f"{type(error).__name__}: {error}") for _ in requests]
        responses, start = [], 0
        for each in asked:
            places = range(start, start + len(each))
            start += len(each)
            told = [
                self._told(broken[place], len(items[place])) if place in broken else ""
                for place in places
            ]
            if len(told) == 1 and told[0]:
                responses.append(_refusal(told[0], "INVALID_ARG"))
                continue
            tensors = [
                pb_utils.Tensor(name, _as(arrays[name][places.start : places.stop], dtype))
                for name, dtype in self.dtypes.items()
            ]
            tensors.append(pb_utils.Tensor(ERROR, _column(told)))
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

    def _read(self, items):
        """Arrays of all items, rows of nothing for those that are broken; why, by place.

        What fails as a whole (for want of memory, say) is tried item by item, so that one is to
        blame.
        """
        try:
            return self._arrays(items)
        except Exception:
            broken = {}
            for place, item in enumerate(items):
                try:
                    _, why = self._arrays([item])
                    if why:
                        broken[place] = why[0]
                except Exception as error:
                    broken[place] = str(error) or type(error).__name__
            kept = [b"" if place in broken else item for place, item in enumerate(items)]
            arrays, _ = self._arrays(kept)
            return arrays, broken

    def _arrays(self, items):
        return self.reader.arrays(items, self.numbers, self.files, self.threads)

    def _told(self, why, size):
        return f"expected {self.reader.TAKES} in {RAW!r}; got: {why} ({size} bytes); fix: {FIX}"


def _imported(path):
    """The module of a file, whatever else is called so."""
    spec = importlib.util.spec_from_file_location(f"tlexport_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _as(array, dtype):
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def _column(texts):
    found = np.empty((len(texts), 1), dtype=np.object_)
    found[:, 0] = [text.encode() for text in texts]
    return found


def _refusal(told, code="INTERNAL"):
    error = pb_utils.TritonError(told, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse([], error)
