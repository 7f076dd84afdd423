"""What machine and which versions a number came from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tlexport.errors import OptionError

PACKAGES = (
    "tlexport",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "tritonclient",
    "openvino",
    "mlcommons-loadgen",
)


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """CPU, cores this process may use, system and package versions."""

    cpu: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Which process of one launch this is, of how many; the `local` ones share its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.count and 0 <= self.local_rank < self.local_count):
            raise OptionError(
                "a launcher that gives each process a rank from 0 up to their number",
                got=f"rank {self.rank} of {self.count}, "
                f"{self.local_rank} of {self.local_count} on this machine",
                fix="look at RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or unset them",
            )


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
"""What srun sets in each task; the script of sbatch itself, which is alone, has no step's."""


def launch(variables: Mapping[str, str] | None = None) -> Launch:
    """What torchrun or srun says in the environment; alone where neither does.

    Raises:
        OptionError: the variables are no numbers or contradict each other.
    """
    variables = os.environ if variables is None else variables
    for names in (TORCHRUN, SLURM):
        if not all(name in variables for name in names[:2]):
            continue
        rank, count, local_rank = (_whole(variables, name) for name in names[:3])
        beside = variables.get(names[3], "1")
        if names is SLURM:  # "4(x2),3": four on each of two machines, three on the last
            beside = str(max(int(part.partition("(")[0]) for part in beside.split(",")))
        local_count = max(local_rank + 1, _whole({names[3]: beside}, names[3]))
        return Launch(rank=rank, count=count, local_rank=local_rank, local_count=local_count)
    return Launch()


def _whole(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "0")
    if not text.isdecimal():
        raise OptionError(
            f"a whole number in the variable {name}",
            got=repr(text),
            fix="let torchrun or srun set it, or unset it",
        )
    return int(text)


def hold_alone(verb: str) -> None:
    """Refuse what several processes would each do: write one file, serve at one port, be timed.

    Raises:
        OptionError: this is one of several processes that were launched together.
    """
    mine = launch()
    if mine.count > 1:
        raise OptionError(
            f"one process for {verb}",
            got=f"process {mine.rank + 1} of {mine.count} that were launched together",
            fix="launch `tlexport train` alone by torchrun or srun: it divides the work; what "
            "follows it runs once, without them",
        )


def environment() -> Environment:
    """The environment of this process, read now."""
    return Environment(
        cpu=_cpu_model(),
        cores=cores(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a model answers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # what is not installed decides nothing
    return found


def cores() -> int:
    """Whole cores this process may use: its affinity, cut by the cgroup's CPU quota; at least 1.

    A quota of 1.5 cores counts as 1: a second busy thread would be throttled. Processes that were
    launched together on a machine share it: each may use its part.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    whole = max(1, int(min(allowed or 1, quota if quota is not None else float("inf"))))
    return max(1, min(whole, _share(whole)))


def _share(whole: int) -> int:
    """What one process of a launch takes of so many cores.

    SLURM may have bound each task to its own cores already: what it granted says so.
    """
    beside = launch().local_count
    if all(name in os.environ for name in SLURM[:2]) and "RANK" not in os.environ:
        if each := os.environ.get("SLURM_CPUS_PER_TASK"):
            return int(each)
        return int(os.environ.get("SLURM_CPUS_ON_NODE", whole)) // beside
    return whole // beside


def spins() -> bool:
    """Whether idle threads may spin: not where OMP_WAIT_POLICY=PASSIVE says so.

    OpenMP's own rule, which ONNX Runtime's threads are then held to as well. On cores that others
    use too, threads that spin take the time of those that work: twice as much for a small network.
    """
    return os.environ.get("OMP_WAIT_POLICY", "").strip().upper() != "PASSIVE"


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether products of uint8 and int8 overflow the 16 bits in which this CPU adds them up.

    x86 before VNNI (vpmaddubsw) does: weights must keep to 7 bits there. False where it is unknown
    what CPU this is, as on other systems and other architectures.
    """
    flags = _flags(cpuinfo)
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & flags


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bf16 itself (AMX or AVX512_BF16); without, it is slower."""
    return bool({"amx_bf16", "avx512_bf16"} & _flags(cpuinfo))


def _flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()  # another system, of which nothing is known
    found = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return set(next(found, []))


def _cgroup_quota(root: Path) -> float | None:
    """Cores granted by the cgroup of this process (v2 `cpu.max`, v1 `cpu.cfs_quota_us`)."""
    grants = []
    for folder in _cgroup_folders(root):
        try:
            quota, period = (folder / "cpu.max").read_text().split()[:2]
        except (OSError, ValueError):
            try:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            except OSError:
                continue  # neither version of cgroups bounds the CPU here
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            grants.append(int(quota) / int(period))
    return min(grants, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """Every folder from this process's cgroup up to the root; each may hold a quota."""
    folders = [root, root / "cpu"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        place = base / path.lstrip("/")
        folders += [f for f in (place, *place.parents) if f.is_relative_to(base)]
    return list(dict.fromkeys(folders))


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
