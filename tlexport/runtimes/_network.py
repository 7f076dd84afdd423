"""A bundle's network in PyTorch, on a device."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tlexport import networks
from tlexport.arithmetic import ARITHMETICS, arithmetic, prepared
from tlexport.bundle import Bundle
from tlexport.environment import cores
from tlexport.errors import MissingDependency, OptionError, SpecError
from tlexport.options import RuntimeOptions
from tlexport.runtimes._turns import Turns
from tlexport.spec import Tensors

Forward = Callable[..., Any]
Compile = Callable[[torch.nn.Module], Forward]


class Network:
    """The network as its task or importer builds it from the bundle's weights.

    At most `instances` forward passes run at a time, each with its share of the threads: the
    thread budget is the one that every other runtime gets. On "cpu-float64" every operator
    computes in float64 and the answers are float64; on "cpu-fp32", "cpu-fp16", "cpu-bf16" and
    "cpu-int8" they are rounded as that precision rounds, which tells what it costs at best. None
    of these is the original: `facts` names no weights. On a GPU `counters` tells the time between
    two events around the forward pass: what the device itself took, without the copies.

    `compiled` is what makes something quicker of the network before it is asked.
    """

    def __init__(
        self, bundle: Bundle, name: str, options: RuntimeOptions, compiled: Compile | None = None
    ) -> None:
        self.name = name
        where = name.partition("@")[2]
        self.spec = bundle.spec
        device, _, self._arithmetic = where.partition("-")
        self._device = _device(name, where if self._arithmetic not in ARITHMETICS else device)
        self._threads = options.threads_each(cores())
        self._turns = Turns(range(options.instances))
        self._facts = {
            "runtime": "torch",
            "version": str(torch.__version__),
            "device": where,
            "threads": self._threads,
            "instances": options.instances,
        }
        if not self._arithmetic:
            self._facts["weights_sha256"] = bundle.manifest.weights_sha256
        self._threads_before = torch.get_num_threads()
        network = networks.network(bundle).to(self._device)
        network = prepared(network, self._arithmetic)
        self._network: Forward | None = compiled(network) if compiled else network
        self._counted = {"requests": 0.0, "queue_ms": 0.0, "compute_ms": 0.0}
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Answer: rows in, rows out, in order.

        Raises:
            SpecError: the inputs are not the declared ones, or the network cannot take them.
            OptionError: the batch does not fit into the device's memory, or it is closed.
        """
        self.spec.check(inputs)
        network = self._network
        if network is None:
            raise OptionError("an open runtime", got=f"{self.name}, closed", fix="open it again")
        # Not inference_mode for another arithmetic: there composite operators come undivided.
        how = torch.no_grad() if self._arithmetic else torch.inference_mode()
        with self._turns.one(), how, arithmetic(self._arithmetic or None):
            if torch.get_num_threads() != self._threads:  # each thread has its own count
                torch.set_num_threads(self._threads)
            try:
                answer = self._timed(
                    network, [self._tensor(inputs[s.name]) for s in self.spec.inputs]
                )
            except torch.OutOfMemoryError as error:
                raise OptionError(
                    f"a batch that fits into the memory of {self._device}",
                    got=_first_line(error),
                    fix="ask smaller batches",
                ) from error
            except RuntimeError as error:
                raise SpecError(
                    "inputs the network can take",
                    got=_first_line(error),
                    fix="compare the network's forward() with the bundle's spec",
                ) from error
            return self._named(answer)

    def facts(self) -> Mapping[str, Any]:
        """Library version, device, threads, and the digest of the weights it was built from."""
        return dict(self._facts)

    def counters(self) -> Mapping[str, float]:
        """On a GPU, requests and the milliseconds by events; else none: it runs in this process."""
        if self._device.type != "cuda":
            return {}
        with self._lock:
            return dict(self._counted)

    def close(self) -> None:
        """Give the network and the process's thread count back."""
        self._network = None
        torch.set_num_threads(self._threads_before)

    def _timed(self, network: Forward, tensors: list[torch.Tensor]) -> Any:
        """One forward pass, between two events where it is on a GPU."""
        if self._device.type != "cuda":
            return network(*tensors)
        with torch.cuda.device(self._device):
            make: Any = torch.cuda.Event
            began, ended = (make(enable_timing=True) for _ in range(2))
            began.record()
            answer = network(*tensors)
            ended.record()
            ended.synchronize()
        with self._lock:
            self._counted["requests"] += 1
            self._counted["compute_ms"] += began.elapsed_time(ended)
        return answer

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)
        wide = self._arithmetic == "float64" and tensor.is_floating_point()
        return tensor.double() if wide else tensor

    def _named(self, answer: torch.Tensor | tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
        tensors = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
        if len(tensors) != len(self.spec.outputs):
            raise SpecError(
                f"the outputs {[spec.name for spec in self.spec.outputs]}",
                got=f"{len(tensors)} tensors from the network",
                fix="return one tensor per declared output",
            )
        pairs = zip(self.spec.outputs, tensors, strict=True)
        return {spec.name: tensor.cpu().numpy() for spec, tensor in pairs}


def _device(name: str, where: str) -> torch.device:
    kind = name.partition("@")[0]
    if where == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda:\d+", where):
        raise OptionError(
            f"{kind}@cpu, {kind}@cuda:N"
            + (f" or {kind}@cpu-" + "|".join(ARITHMETICS) if kind == "eager" else ""),
            got=name,
            fix="name one of these devices",
        )
    if not torch.cuda.is_available():
        raise MissingDependency(
            f"a GPU for {name}",
            got=f"torch {torch.__version__} sees no CUDA device",
            fix="run on a machine with an NVIDIA driver and a CUDA build of torch, or use "
            f"{kind}@cpu",
        )
    if int(where[5:]) >= torch.cuda.device_count():
        raise OptionError(
            f"a device below cuda:{torch.cuda.device_count()}",
            got=name,
            fix="name a device that this process sees",
        )
    return torch.device(where)


def of_bundle(bundle: Bundle | None, name: str) -> Bundle:
    """The bundle that holds the network.

    Raises:
        OptionError: there is none.
    """
    if bundle is None:
        raise OptionError(
            f"a bundle for {name}", got="none", fix="name the bundle that holds the network"
        )
    return bundle


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
