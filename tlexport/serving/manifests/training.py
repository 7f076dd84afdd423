"""What each pod of a training job runs, and needs."""

from __future__ import annotations

import msgspec

PORT = 29500
"""torchrun's own choice."""

PATIENCE_S = 600
"""Seconds a pod waits for the others: an image is pulled on one node later than on another, and
Kubernetes lets a container that failed often wait up to 300 s before it is started again."""

LOSSES = 10
"""Pods that may be lost; with one lost the others stop as well, and each counts as a failure."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A training job of `nodes` pods with `devices` processes each; cores and memory are theirs."""

    model: str
    image: str
    nodes: int
    devices: int
    cores: int
    memory_mib: int
    gpu: bool

    @property
    def name(self) -> str:
        """The job's, the service's, and how every pod's name begins."""
        return f"{self.model}-training"

    @property
    def port(self) -> int:
        """Where the pods meet."""
        return PORT

    @property
    def host(self) -> str:
        """The pod where they meet: the first, as the headless service calls it."""
        return f"{self.name}-0.{self.name}"

    @property
    def pod_cores(self) -> int:
        """Cores of a pod: each process takes its part."""
        return self.devices * self.cores

    @property
    def pod_memory_mib(self) -> int:
        """Memory of a pod."""
        return self.devices * self.memory_mib

    @property
    def failures(self) -> int:
        """Failed containers after which the job is given up."""
        return LOSSES * self.nodes

    @property
    def command(self) -> list[str]:
        """What a pod runs, the same in all: torchrun counts its processes, tlexport trains."""
        launcher = [
            *("torchrun", "--nnodes", self.nodes, "--nproc-per-node", self.devices),
            *("--rdzv-id", self.name, "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"{self.host}:{PORT}"),
            *("--rdzv-conf", f"join_timeout={PATIENCE_S},read_timeout={PATIENCE_S}"),
        ]
        training = [
            *("-m", "tlexport", "train", "/data", "-o", f"/output/{self.model}.bundle"),
            *("--unfreeze", "all", "--nodes", self.nodes, "--devices", self.devices),
        ]
        return [str(word) for word in (*launcher, *training)]
