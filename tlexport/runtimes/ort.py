"""ort@cpu, ort@cpu-plain, ort@cuda:N[-graph], ort@tensorrt:N."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tlexport.bundle import Bundle
from tlexport.environment import cores, spins
from tlexport.errors import ExportError, MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes._bound import BoundSession
from tlexport.runtimes._turns import Turns
from tlexport.serving.backends.onnxruntime import tlexport_placement as placement
from tlexport.spec import ModelSpec, Tensors, TensorSpec, cast

DTYPES = {"float": "float32", "double": "float64", "string": "object"}
"""ONNX's element types whose names are not numpy's; `float16`, `uint8` ... are."""
FATAL_ONLY, WARNINGS = 4, 2
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
"""What a kind of place asks for; TensorRT leaves to CUDA what it does not have."""
GRAPH = "-graph"
PLAIN = "cpu-plain"
"""On the CPU, the graph as it is written: none of the optimisations that could be at fault."""


class OrtPool:
    """As many sessions of one file as instances were asked for; a request takes a free one.

    The graph is optimised fully (ENABLE_ALL), as Triton's ONNX Runtime backend does by default,
    and on "cpu-plain" not at all. On "cuda:N-graph" inputs and outputs are bound to memory of the
    card, and each shape is replayed as one CUDA graph.
    Where a bundle was made of an ONNX file, "cpu-plain" opens that very file in place of the
    artifact: there is no other original.
    A file of another model opens, so that `verify` can report on it, and answers nothing.
    """

    def __init__(self, bundle: Bundle, where: str, options: RuntimeOptions) -> None:
        file, self._taken, digests = _file(bundle, where, options)
        self.name = f"ort@{where}"
        self.spec = bundle.spec
        self._outputs = [spec.name for spec in self.spec.outputs]
        threads = options.threads_each(cores())
        sessions = [_session(file, where, threads) for _ in range(options.instances)]
        self._mismatch = _mismatch(self._taken, sessions[0], file)
        self._sessions = Turns(sessions)
        self._facts = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "device": where,
            "providers": sessions[0].get_providers(),
            "threads": threads,
            "instances": options.instances,
            **digests,
        }
        self._open = True

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Answer: rows in, rows out, in order.

        Raises:
            SpecError: the inputs are not the declared ones, the file's own inputs and outputs
                are not, or it refuses these sizes.
            OptionError: it is closed.
        """
        self.spec.check(inputs)
        if self._mismatch is not None:
            raise self._mismatch
        if not self._open:
            raise OptionError("an open runtime", got=f"{self.name}, closed", fix="open it again")
        with self._sessions.one() as session:
            try:
                answers = session.run(self._outputs, cast(inputs, self._taken.inputs))
            except Exception as error:  # ONNX Runtime's exceptions share no base but this
                raise self._refused(inputs, error) from error
        return cast(dict(zip(self._outputs, answers, strict=True)), self.spec.outputs)

    def facts(self) -> Mapping[str, Any]:
        """Library version, providers, threads, and the digest of the file it runs.

        `opened_sha256` is what this process itself opened, where a server's `artifact_sha256` is
        what its configuration says.
        """
        return dict(self._facts)

    def counters(self) -> Mapping[str, float]:
        """None: it runs in this process."""
        return {}

    def close(self) -> None:
        """Give sessions and their threads back."""
        self._open = False
        self._sessions.clear()

    def _refused(self, inputs: Tensors, error: Exception) -> SpecError:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        return SpecError(
            f"{self.name} to answer {shapes}",
            got=" ".join(str(error).split()),
            fix="where a size is called invalid, that axis is a constant in the file: export it "
            "as dynamic",
        )


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> OrtPool:
    """Open the artifact `options.artifact` of a bundle where it says.

    `where` is "cpu", "cpu-plain", "cuda:N", "cuda:N-graph" or "tensorrt:N".

    Raises:
        OptionError: no bundle, another device, an artifact of another kind, or more instances
            than threads.
        MissingDependency: a GPU was asked for and ONNX Runtime would fall back to the CPU.
        BundleError: the artifact is missing, changed or stale.
        ExportError: ONNX Runtime cannot load the file, or leaves a part of it to the CPU.
    """
    if bundle is None:
        raise OptionError(
            f"a bundle for ort@{where}", got="none", fix="name the bundle that holds the artifact"
        )
    return OrtPool(bundle, where, options)


def _file(
    bundle: Bundle, where: str, options: RuntimeOptions
) -> tuple[Path, ModelSpec, dict[str, str]]:
    """The file to open, what it takes and answers, and the digests that tell which it is."""
    if where == PLAIN and not bundle.manifest.original:
        return bundle.weights, bundle.spec, {"weights_sha256": bundle.manifest.weights_sha256}
    artifact = bundle.artifact(options.artifact)
    if artifact.triton_backend != "onnxruntime":
        raise OptionError(
            f"an artifact for ONNX Runtime, to be run by ort@{where}",
            got=f"{artifact.name}, which is for {artifact.triton_backend}",
            fix="name another runtime, or another --artifact",
        )
    digests = {"artifact_sha256": artifact.sha256}
    if where != PLAIN:  # nobody serves it so: what passes there is no proof
        digests["opened_sha256"] = artifact.sha256
    return bundle.artifact_file(artifact), bundle.spec_of(artifact), digests


def _session(file: Path, where: str, threads: int) -> ort.InferenceSession | BoundSession:
    settings = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if where == PLAIN else levels.ORT_ENABLE_ALL
    )
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    if not spins():
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = FATAL_ONLY  # its errors come as exceptions, too
    if where in ("cpu", PLAIN):
        return _load(file, settings, ["CPUExecutionProvider"])
    return _gpu_session(file, where, settings)


def _gpu_session(
    file: Path, where: str, settings: ort.SessionOptions
) -> ort.InferenceSession | BoundSession:
    """A session on a GPU alone: what ONNX Runtime would leave to the CPU is an error."""
    match = re.fullmatch(r"(cuda|tensorrt):(\d+)|(cuda):(\d+)-graph", where)
    if match is None:
        raise OptionError(
            "ort@cpu, ort@cpu-plain, ort@cuda:N, ort@cuda:N-graph or ort@tensorrt:N",
            got=f"ort@{where}",
            fix="name one of these",
        )
    wanted, number = PROVIDERS[match[1] or match[3]], match[2] or match[4]
    graph = {"enable_cuda_graph": "1"} if where.endswith(GRAPH) else {}
    chosen = [(name, {"device_id": number, **graph}) for name in wanted]
    settings.add_session_config_entry(placement.RECORD, "1")
    notes = io.StringIO()
    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(notes):  # preload_dlls prints what it does not find
            ort.preload_dlls()
        session = _load(file, settings, [*chosen, "CPUExecutionProvider"])
    finally:
        ort.set_default_logger_severity(WARNINGS)
    hold_placement(session, where, wanted)
    return BoundSession(session, "cuda", int(number)) if graph else session


def hold_placement(session: ort.InferenceSession, where: str, wanted: Sequence[str]) -> None:
    """Refuse a session that is not where it was asked to be, as a whole or in part.

    Raises:
        MissingDependency: a provider did not load; its missing library is named.
        ExportError: nodes that compute more than sizes were left to the CPU.
    """
    for name in wanted:
        if name in session.get_providers():
            continue
        raise MissingDependency(
            f"ONNX Runtime's {name} for ort@{where}",
            got=f"it fell back to {', '.join(session.get_providers())}: {_why_not(name)}",
            fix=f"install onnxruntime-gpu {ort.__version__} with the CUDA and cuDNN it was built "
            "for (pip install onnxruntime-gpu[cuda,cudnn]), or use ort@cpu",
        )
    if lost := placement.strayed(session, wanted):
        raise ExportError(
            f"every node on {' or '.join(wanted)} for ort@{where}, but those that compute sizes",
            got=f"on the CPU: {placement.told(lost)}",
            fix="export it with operators that the provider has for these types, or use ort@cpu",
        )


def _load(
    file: Path, settings: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(file, settings, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        raise ExportError(
            f"a file that onnxruntime {ort.__version__} loads",
            got=" ".join(str(error).split()),
            fix="export again, or update onnxruntime",
        ) from error


def _why_not(provider: str) -> str:
    short = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{short}.so"
    version = getattr(sys.modules.get("torch"), "version", None)
    cuda = getattr(ort, "cuda_version", "")
    return placement.why_not(library, cuda, getattr(version, "cuda", None))


def _mismatch(
    spec: ModelSpec, session: ort.InferenceSession | BoundSession, file: Path
) -> SpecError | None:
    """Where the file's own inputs or outputs are not the declared ones, the error that says so.

    An axis that is declared as dynamic and a constant in the file passes here: which sizes such
    a file answers is for `verify` to find out.
    """
    for kind, specs, found in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        by_name = {node.name: node for node in found}
        if set(by_name) != {s.name for s in specs} or not all(
            _fits(s, by_name[s.name]) for s in specs
        ):
            return SpecError(
                f"the {kind} {', '.join(_written(s.name, s.dtype, s.shape) for s in specs)}",
                got=", ".join(_written(n.name, _dtype(n), n.shape) for n in found)
                + f" in {file.name}",
                fix="export again: the file is not of this bundle's model",
            )
    return None


def _fits(spec: TensorSpec, node: ort.NodeArg) -> bool:
    return (
        _dtype(node) == spec.dtype
        and len(node.shape) == len(spec.shape)
        and all(
            isinstance(want, str) or not isinstance(size, int) or want == size
            for want, size in zip(spec.shape, node.shape, strict=True)
        )
    )


def _dtype(node: ort.NodeArg) -> str:
    element: str = node.type.removeprefix("tensor(").removesuffix(")")
    return DTYPES.get(element, element)


def _written(name: str, dtype: str, shape: Sequence[Any]) -> str:
    return f"{name} {dtype} [{', '.join(str(size) for size in shape)}]"
