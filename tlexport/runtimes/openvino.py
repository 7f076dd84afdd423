"""openvino@cpu, openvino@cpu-bf16, openvino@cpu-f16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.errors import ExportError, MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes._turns import Turns
from tlexport.spec import Tensors, cast

PRECISIONS = {"cpu": "f32", "cpu-bf16": "bf16", "cpu-f16": "f16"}
"""What is computed in; OpenVINO's own default is bf16 wherever the processor has it."""


class OpenVino:
    """The ONNX artifact on OpenVINO; as many streams as instances, which share the threads."""

    def __init__(self, bundle: Bundle, where: str, options: RuntimeOptions) -> None:
        self.name = f"openvino@{where}"
        self.spec = bundle.spec
        artifact = bundle.artifact(options.artifact)
        if artifact.triton_backend != "onnxruntime":
            raise OptionError(
                f"an ONNX artifact, to be run by {self.name}",
                got=f"{artifact.name}, which is for {artifact.triton_backend}",
                fix="name another runtime, or another --artifact",
            )
        self._taken = bundle.spec_of(artifact)
        threads = options.threads_each(cores())
        openvino, self._model = _compiled(
            str(bundle.artifact_file(artifact)),
            {
                "INFERENCE_PRECISION_HINT": PRECISIONS[where],
                "INFERENCE_NUM_THREADS": threads * options.instances,
                "NUM_STREAMS": options.instances,
            },
        )
        requests = [self._model.create_infer_request() for _ in range(options.instances)]
        self._requests: Turns[Any] | None = Turns(requests)
        used = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._facts = {
            "runtime": "openvino",
            "version": openvino.__version__,
            "device": where,
            "precision": used,
            "threads": threads,
            "instances": options.instances,
            "artifact_sha256": artifact.sha256,
            "opened_sha256": artifact.sha256,
        }

    def __call__(self, inputs: Tensors) -> Tensors:
        """Answer: rows in, rows out, in order.

        Raises:
            SpecError: the inputs are not the declared ones, or the file refuses these sizes.
            OptionError: it is closed.
        """
        self.spec.check(inputs)
        requests = self._requests
        if requests is None:
            raise OptionError("an open runtime", got=f"{self.name}, closed", fix="open it again")
        given = {
            name: np.ascontiguousarray(array)
            for name, array in cast(inputs, self._taken.inputs).items()
        }
        with requests.one() as request:
            try:
                found = request.infer(given, share_inputs=True)
                answer = {spec.name: found[spec.name].copy() for spec in self._taken.outputs}
            except (RuntimeError, KeyError) as error:
                raise SpecError(
                    f"{self.name} to answer "
                    f"{ {name: list(array.shape) for name, array in inputs.items()} }",
                    got=" ".join(str(error).split()),
                    fix="export it with a dynamic axis where a size is refused",
                ) from error
        return cast(answer, self.spec.outputs)

    def facts(self) -> Mapping[str, Any]:
        """Library version, the precision it computes in, threads, digest of the file it runs."""
        return dict(self._facts)

    def counters(self) -> Mapping[str, float]:
        """None: it runs in this process."""
        return {}

    def close(self) -> None:
        """Give the compiled model back."""
        self._requests = self._model = None


def open(bundle: Bundle | None, where: str, options: RuntimeOptions) -> OpenVino:
    """Open the artifact `options.artifact` of a bundle, computing in float32 unless told otherwise.

    Raises:
        OptionError: no bundle, another place, an artifact of another kind.
        MissingDependency: OpenVINO is not installed.
        BundleError: the artifact is missing, changed or stale.
        ExportError: OpenVINO cannot load the file.
    """
    if where not in PRECISIONS:
        raise OptionError(
            " or ".join(f"openvino@{place}" for place in PRECISIONS),
            got=f"openvino@{where}",
            fix="name one of these",
        )
    if bundle is None:
        raise OptionError(
            f"a bundle for openvino@{where}",
            got="none",
            fix="name the bundle that holds the artifact",
        )
    return OpenVino(bundle, where, options)


def _compiled(file: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency(
            "OpenVINO",
            got=f"it cannot be imported: {error}",
            fix="pip install 'tlexport[openvino]'",
        ) from error
    try:
        core = openvino.Core()
        return openvino, core.compile_model(core.read_model(file), "CPU", settings)
    except RuntimeError as error:
        raise ExportError(
            f"a file that OpenVINO {openvino.__version__} loads",
            got=" ".join(str(error).split()),
            fix="use another runtime, or another --artifact",
        ) from error
