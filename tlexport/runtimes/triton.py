"""A running Triton server, over gRPC, HTTP or shared memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from tlexport.bundle import Bundle
from tlexport.errors import OptionError, ServerError
from tlexport.options import RuntimeOptions
from tlexport.runtimes._wire import Line, Model, SharedLine
from tlexport.serving.client import Client, parse
from tlexport.serving.config import DIGESTS_PARAMETER, SPEC_PARAMETER
from tlexport.serving.pipeline import pipeline_of, whole
from tlexport.serving.shared_memory import CudaRegion, Region, SystemRegion
from tlexport.spec import TRITON_DTYPES, ModelSpec, Tensors, TensorSpec, cast

NUMPY_DTYPES = {triton: name for name, triton in TRITON_DTYPES.items()}
REGIONS: dict[str, Callable[[Client, int], Region]] = {"shm": SystemRegion, "cudashm": CudaRegion}
"""Protocols by which arrays lie in shared memory."""

COUNTED = {
    "queue_ms": "queue",
    "compute_ms": "compute_infer",
    "input_ms": "compute_input",
    "output_ms": "compute_output",
}


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> TritonRuntime:
    """Connect to "HOST:PORT" (gRPC), or with a scheme of `serving.client.parse` before it.

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
        around = _around(client, model)
    finally:
        client.close()
    facts = _facts(where, told, model, version, config) | around
    opened = Model(name=model, version=version, facts=facts, dtypes=_dtypes(config))
    return TritonRuntime(where, options, spec, opened)


class TritonRuntime:
    """A model on a server; each request in flight has a connection to itself."""

    def __init__(self, where: str, options: RuntimeOptions, spec: ModelSpec, model: Model) -> None:
        self.name = f"triton@{where}"
        self.spec = spec
        self._wire = _on_the_wire(spec, model)
        self._address = parse(where)
        self._options = options
        self._model = model
        self._mine = threading.local()
        self._lines: list[tuple[threading.Thread, Line]] = []
        self._free: list[Line] = []
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Tensors:
        """Ask the server once: rows in, rows out.

        Raises:
            SpecError: the inputs are not what the model declares.
            ServerError: a refusal in the server's words, or no answer in time.
        """
        self.spec.check(inputs)
        if self._wire == self.spec:
            with self._line() as line:
                return line.ask(inputs)
        with self._line() as line:
            answer = line.ask(cast(inputs, self._wire.inputs))
        return cast(answer, self.spec.outputs)

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
    def _line(self) -> Iterator[Line]:
        """A connection for one request.

        A gRPC connection is taken from those that are free. An HTTP connection belongs to the
        thread that made it (its sockets are gevent's), and is closed when that thread is no more.
        """
        if self._address.protocol == "http":
            line: Line | None = getattr(self._mine, "line", None)
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

    def _connected(self) -> Line:
        client = Client(self._address, self._options.timeout_s)
        region = REGIONS.get(self._address.protocol)
        line = (
            SharedLine(client, self._wire, self._model, region)
            if region is not None
            else Line(client, self._wire, self._model)
        )
        with self._lock:
            left = [each for each in self._lines if not each[0].is_alive()]
            left = left if self._address.protocol == "http" else []
            self._lines = [each for each in self._lines if each not in left]
            self._lines.append((threading.current_thread(), line))
        for _, old in left:
            old.close()
        return line


def _on_the_wire(spec: ModelSpec, model: Model) -> ModelSpec:
    """The spec with the floating-point dtypes that the server takes and gives."""

    def told(tensor: TensorSpec) -> TensorSpec:
        dtype = model.dtypes.get(tensor.name, tensor.dtype)
        floats = "float" in dtype and "float" in tensor.dtype
        return msgspec.structs.replace(tensor, dtype=dtype) if floats else tensor

    return msgspec.structs.replace(
        spec, inputs=tuple(map(told, spec.inputs)), outputs=tuple(map(told, spec.outputs))
    )


def _only_model(client: Client) -> str:
    """The one model in service, or the pipeline that all the others are steps of."""
    entries = client.models()
    ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
    for name in ready:
        if set(ready) == set(whole(name)):
            return pipeline_of(name)
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


def _around(client: Client, model: str) -> dict[str, str]:
    """The pipeline around a model, its version in service, or why there is none; {} without one."""
    name = pipeline_of(model)
    entries = [entry for entry in client.models() if entry["name"] == name]
    if not entries:
        return {}
    ready = [int(entry["version"]) for entry in entries if entry.get("state") == "READY"]
    reasons = [_told_of(entry) for entry in entries]
    return {
        "pipeline": name,
        "pipeline_version": str(max(ready)) if ready else "",
        "pipeline_reason": "" if ready else "; ".join(reasons),
    }


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


def _dtypes(config: dict[str, Any]) -> dict[str, str]:
    """Dtypes of numpy for the inputs and outputs, as far as the configuration tells."""
    entries = (*config.get("input", ()), *config.get("output", ()))
    kinds = {entry["name"]: str(entry["data_type"]).removeprefix("TYPE_") for entry in entries}
    return {name: NUMPY_DTYPES[kind] for name, kind in kinds.items() if kind in NUMPY_DTYPES}


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
