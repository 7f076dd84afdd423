"""What machine and which versions a number came from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import msgspec

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

    A quota of 1.5 cores counts as 1: a second busy thread would be throttled.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, int(min(allowed or 1, quota if quota is not None else float("inf"))))


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether products of uint8 and int8 overflow the 16 bits in which this CPU adds them up.

    x86 before VNNI (vpmaddubsw) does: weights must keep to 7 bits there. False where it is unknown
    what CPU this is, as on other systems and other architectures.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


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
