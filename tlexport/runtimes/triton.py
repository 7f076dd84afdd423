"""A running Triton server, over gRPC, HTTP or shared memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from tritonclient.utils import serialize_byte_tensor

from tlexport.bundle import Bundle
from tlexport.errors import OptionError, ServerError
from tlexport.options import RuntimeOptions
from tlexport.serving.client import Client, parse
from tlexport.serving.config import DIGESTS_PARAMETER, SPEC_PARAMETER
from tlexport.serving.shared_memory import Region
from tlexport.spec import TRITON_DTYPES, ModelSpec, Tensors, TensorSpec

NUMPY_DTYPES = {triton: name for name, triton in TRITON_DTYPES.items()}
UNKNOWN_REGION = "Unable to find shared memory region"
COUNTED = {
    "queue_ms": "queue",
    "compute_ms": "compute_infer",
    "input_ms": "compute_input",
    "output_ms": "compute_output",
}


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> TritonRuntime:
    """Connect to "HOST:PORT" (gRPC), "http://HOST:PORT" or "shm://HOST:PORT".

    Without a bundle the model's spec is the one its configuration carries, else what the server
    tells of its tensors. The model is `options.model`, else the bundle's, else the only one.

    Raises:
        OptionError: the address is written otherwise, or several models are served and none named.
        ServerError: nobody answers there, or the model is not served.
    """
    client = Client(parse(where), options.timeout_s)
    try:
        model = options.model or (bundle.spec.name if bundle else _only_model(client))
        version = options.version or _version_in_service(client, model)
        config = client.config(model, version)
        spec = bundle.spec if bundle else _spec_of(client, model, version, config)
        told = client.server()
    finally:
        client.close()
    facts = _facts(where, told, model, version, config)
    return TritonRuntime(where, options, spec, _Model(name=model, version=version, facts=facts))


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model in service and what is known of it."""

    name: str
    version: str
    facts: dict[str, Any]


class TritonRuntime:
    """A model on a server; each request in flight has a connection to itself."""

    def __init__(self, where: str, options: RuntimeOptions, spec: ModelSpec, model: _Model) -> None:
        self.name = f"triton@{where}"
        self.spec = spec
        self._address = parse(where)
        self._options = options
        self._model = model
        self._mine = threading.local()
        self._lines: list[tuple[threading.Thread, _Line]] = []
        self._free: list[_Line] = []
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """Ask the server once: rows in, rows out.

        Raises:
            SpecError: the inputs are not what the model declares.
            ServerError: a refusal in the server's words, or no answer in time.
        """
        self.spec.check(inputs)
        with self._line() as line:
            return line.ask(inputs)

    def facts(self) -> Mapping[str, Any]:
        """Server version, model version, protocol, instances, threads, digest of the file."""
        return self._model.facts

    def counters(self) -> Mapping[str, float]:
        """Totals of the server for this version: requests, and milliseconds by part."""
        with self._line() as line:
            stats = line.client.statistics(self._model.name, self._model.version)
        parts = stats.get("inference_stats", {})
        found = {"requests": float(parts.get("success", {}).get("count", 0))}
        found["failures"] = float(parts.get("fail", {}).get("count", 0))
        found["executions"] = float(stats.get("execution_count", 0))
        for name, part in COUNTED.items():
            found[name] = float(parts.get(part, {}).get("ns", 0)) / 1e6
        return found

    def close(self) -> None:
        """Close every connection and have the server let go of shared memory."""
        with self._lock:
            lines, self._lines, self._free = self._lines, [], []
            self._mine = threading.local()
        for _, line in lines:
            line.close()

    @contextlib.contextmanager
    def _line(self) -> Iterator[_Line]:
        """A connection for one request.

        A gRPC connection is taken from those that are free. An HTTP connection belongs to the
        thread that made it (its sockets are gevent's), and is closed when that thread is no more.
        """
        if self._address.protocol == "http":
            line: _Line | None = getattr(self._mine, "line", None)
            if line is None:
                line = self._mine.line = self._connected()
            yield line
            return
        with self._lock:
            line = self._free.pop() if self._free else None
        if line is None:
            line = self._connected()
        try:
            yield line
        finally:
            with self._lock:
                self._free.append(line)

    def _connected(self) -> _Line:
        kind = _SharedLine if self._address.protocol == "shm" else _Line
        line = kind(Client(self._address, self._options.timeout_s), self.spec, self._model)
        with self._lock:
            left = [each for each in self._lines if not each[0].is_alive()]
            left = left if self._address.protocol == "http" else []
            self._lines = [each for each in self._lines if each not in left]
            self._lines.append((threading.current_thread(), line))
        for _, old in left:
            old.close()
        return line


class _Line:
    """A connection: arrays travel in the messages."""

    def __init__(self, client: Client, spec: ModelSpec, model: _Model) -> None:
        self.client = client
        self.spec = spec
        self.model = model
        self._outputs = [client.output(tensor.name) for tensor in spec.outputs]

    def ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Ask once."""
        filled = []
        for tensor in self.spec.inputs:
            array = inputs[tensor.name].reshape(self._shape(tensor, inputs[tensor.name].shape))
            entry = self.client.input(tensor.name, array.shape, TRITON_DTYPES[tensor.dtype])
            entry.set_data_from_numpy(array)
            filled.append(entry)
        result = self.client.infer(self.model.name, self.model.version, filled, self._outputs)
        return {tensor.name: self._told(tensor, result) for tensor in self.spec.outputs}

    def _shape(self, tensor: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape on the wire: a server that batches takes and gives [batch] as [batch, 1]."""
        scalar = tensor.batched and len(tensor.shape) == 1 and self.model.facts["max_batch"] > 0
        return (*shape, 1) if scalar and len(shape) == 1 else shape

    def _told(self, tensor: TensorSpec, result: Any) -> Any:
        """An output as it is declared."""
        array = result.as_numpy(tensor.name)
        if array is not None and array.ndim == 2 and len(tensor.shape) == 1 and tensor.batched:
            return array.reshape(len(array)) if array.shape[1] == 1 else array
        return array

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


class _SharedLine(_Line):
    """A connection: arrays lie in memory shared with the server, in and out.

    Outputs whose size is not known beforehand (texts, free axes) travel in the message.
    """

    def __init__(self, client: Client, spec: ModelSpec, model: _Model) -> None:
        super().__init__(client, spec, model)
        self._incoming: Region | None = None
        self._outgoing: Region | None = None

    def ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Ask once; a server that was started anew is told of the memory again."""
        try:
            return self._ask(inputs)
        except ServerError as error:
            if UNKNOWN_REGION not in error.got:
                raise
        self._incoming = self._outgoing = None
        return self._ask(inputs)

    def _ask(self, inputs: Tensors) -> dict[str, np.ndarray]:
        filled = self._fill(inputs)
        batch = max((len(inputs[t.name]) for t in self.spec.inputs if t.batched), default=0)
        shapes = {tensor.name: _known_shape(tensor, batch) for tensor in self.spec.outputs}
        sizes = {
            tensor.name: int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize
            for tensor in self.spec.outputs
            if (shape := shapes[tensor.name]) is not None
        }
        self._outgoing = self._room(self._outgoing, sum(map(_padded, sizes.values())))
        outputs, places, offset = [], {}, 0
        for tensor in self.spec.outputs:
            output = self.client.output(tensor.name)
            if tensor.name in sizes:
                size = sizes[tensor.name]
                output.set_shared_memory(self._outgoing.name, size, offset)
                places[tensor.name] = offset
                offset += _padded(size)
            outputs.append(output)
        result = self.client.infer(self.model.name, self.model.version, filled, outputs)
        answers = {}
        for tensor in self.spec.outputs:
            shape = shapes[tensor.name]
            if shape is None:
                answers[tensor.name] = self._told(tensor, result)
                continue
            view = self._outgoing.view(np.dtype(tensor.dtype), shape, places[tensor.name])
            answers[tensor.name] = view.copy()
        return answers

    def close(self) -> None:
        """Have the server let go of the memory, then close the connection."""
        try:
            for region in (self._incoming, self._outgoing):
                if region is not None:
                    region.close()
        finally:
            super().close()

    def _fill(self, inputs: Tensors) -> list[Any]:
        packed = {
            tensor.name: serialize_byte_tensor(inputs[tensor.name]).item()
            for tensor in self.spec.inputs
            if tensor.dtype == "object"
        }
        sizes = {
            tensor.name: len(packed.get(tensor.name, b"")) or inputs[tensor.name].nbytes
            for tensor in self.spec.inputs
        }
        self._incoming = self._room(self._incoming, sum(map(_padded, sizes.values())))
        filled, offset = [], 0
        for tensor in self.spec.inputs:
            array, size = inputs[tensor.name], sizes[tensor.name]
            if tensor.name in packed:
                self._incoming.write_bytes(packed[tensor.name], offset)
            else:
                self._incoming.write(array, offset)
            shape = self._shape(tensor, array.shape)
            entry = self.client.input(tensor.name, shape, TRITON_DTYPES[tensor.dtype])
            entry.set_shared_memory(self._incoming.name, size, offset)
            filled.append(entry)
            offset += _padded(size)
        return filled

    def _room(self, region: Region | None, size_bytes: int) -> Region:
        """A region of at least this size; a smaller one is given back first."""
        if region is not None and region.size_bytes >= size_bytes:
            return region
        if region is not None:
            region.close()
        return Region(self.client, size_bytes)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 64) * 64


def _known_shape(tensor: TensorSpec, batch: int) -> tuple[int, ...] | None:
    shape = [batch if size == "batch" else size for size in tensor.shape]
    if tensor.dtype == "object" or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))


def _only_model(client: Client) -> str:
    entries = client.models()
    ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
    if len(ready) == 1:
        return str(ready[0])
    if not ready:
        raise ServerError(
            f"a model in service at {client.address.place}",
            got="; ".join(_told_of(entry) for entry in entries) or "no model",
            fix="package one into the served repository, or load one there",
        )
    raise OptionError(
        f"a model of the server at {client.address.place} to be named",
        got=f"{len(ready)} models: {', '.join(ready)}",
        fix="pass --model NAME",
    )


def _told_of(entry: dict[str, Any]) -> str:
    """A model of the repository's index that is not ready, and why not."""
    reason = str(entry.get("reason", "")).split("\n")[0]
    return f"{entry['name']}: {reason or entry.get('state') or 'not loaded'}"


def _version_in_service(client: Client, model: str) -> str:
    """The newest version that is ready.

    Raises:
        ServerError: the model is not served; those that are get named.
    """
    entries = client.models()
    ready = [e for e in entries if e["name"] == model and e.get("state") == "READY"]
    if ready:
        return str(max(int(entry["version"]) for entry in ready))
    why = [e.get("reason", "") for e in entries if e["name"] == model]
    served = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
    raise ServerError(
        f"the model {model!r} in service at {client.address.place}",
        got=next(
            (reason.split("\n")[0] for reason in why if reason),
            f"it serves {', '.join(served) or 'no model'}",
        ),
        fix="pass --model with one that is served, or package it into the served repository",
    )


def _spec_of(client: Client, model: str, version: str, config: dict[str, Any]) -> ModelSpec:
    """The spec that `tlexport package` left in the configuration, else what the server tells."""
    text = config.get("parameters", {}).get(SPEC_PARAMETER, {}).get("string_value")
    if text:
        with contextlib.suppress(msgspec.DecodeError):  # another version's: ask the server instead
            return msgspec.json.decode(text, type=ModelSpec)
    told = client.metadata(model, version)
    batched = int(config.get("max_batch_size", 0)) > 0
    return ModelSpec(
        name=model,
        task="",
        inputs=tuple(_described(entry, batched) for entry in told["inputs"]),
        outputs=tuple(_described(entry, batched) for entry in told["outputs"]),
    )


def _described(entry: dict[str, Any], batched: bool) -> TensorSpec:
    sizes = [int(size) for size in entry["shape"]]
    shape = [size if size >= 0 else f"{entry['name']}_{place}" for place, size in enumerate(sizes)]
    if batched:
        shape[0] = "batch"
    return TensorSpec(name=entry["name"], dtype=NUMPY_DTYPES[entry["datatype"]], shape=tuple(shape))


def _facts(
    where: str, told: dict[str, Any], model: str, version: str, config: dict[str, Any]
) -> dict[str, Any]:
    parameters = {
        name: entry.get("string_value", "") for name, entry in config.get("parameters", {}).items()
    }
    digests = parameters.get(DIGESTS_PARAMETER)
    known = msgspec.json.decode(digests, type=dict[str, str]) if digests else {}
    return {
        "server": f"{told.get('name', 'triton')} {told.get('version', '')}".strip(),
        "protocol": parse(where).protocol,
        "model": model,
        "version": version,
        "backend": config.get("backend", ""),
        "instances": sum(int(group.get("count", 1)) for group in config.get("instance_group", [])),
        "threads": int(parameters.get("intra_op_thread_count") or 0),
        "max_batch": int(config.get("max_batch_size", 0)),
        "artifact_sha256": known.get(version),
        "labels": _labels(parameters.get(SPEC_PARAMETER)),
    }


def _labels(text: str | None) -> list[str]:
    """The labels that the server's configuration tells clients; none where it tells none."""
    try:
        return list(msgspec.json.decode(text or "", type=ModelSpec).labels)
    except msgspec.DecodeError:  # another version's, or nobody's
        return []
