"""The machine that a figure was measured on: without it a figure says nothing."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kvbench import transports
from kvstore.config import FabricConfig

_PACKAGES = ("kvstore", "ucxx-cu12", "ucxx-cu13", "libucx-cu12", "libucx-cu13", "grpcio", "numpy", "lmdb", "xxhash")
_TOOL_S = 20


@cache
def describe() -> dict[str, Any]:
    """CPUs, memory, kernel, NICs, disks, GPUs, versions, and what UCX chose; what cannot be found out is left out."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nics": _nics(),
        "rdma_devices": transports.rdma_devices(),
        "transports": transports.chosen(FabricConfig(kind="ucx")),
        "disks": _disks(),
        "gpus": _gpus(),
        "versions": _versions(),
        "load_average": os.getloadavg()[0],
    }


def warnings(described: Mapping[str, Any]) -> Iterator[str]:
    """What in a description speaks against its figures."""
    yield from transports.slow(described["transports"], len(described["rdma_devices"]))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _nics() -> dict[str, str]:
    """Network interfaces and their speeds, RDMA devices among them."""
    found = {}
    for path in sorted(Path("/sys/class/net").iterdir()):
        try:
            speed = int((path / "speed").read_text())
        except (OSError, ValueError):
            speed = -1
        found[path.name] = f"{speed} Mbit/s" if speed > 0 else "speed unknown"
    for name in transports.rdma_devices():
        found[name] = Path(f"/sys/class/infiniband/{name}/ports/1/rate").read_text().strip()
    return found


def _disks() -> list[dict[str, Any]]:
    """Whole disks, not their partitions: name, model, size, whether they rotate."""
    columns = "NAME,MODEL,SIZE,ROTA,TYPE"
    said = _said("lsblk", "--json", "--bytes", "--nodeps", "--output", columns)
    disks = json.loads(said)["blockdevices"] if said else []
    return [
        {"name": disk["name"], "model": disk["model"] or "", "bytes": int(disk["size"]), "rotates": bool(disk["rota"])}
        for disk in disks
        if disk["type"] == "disk" and int(disk["size"])
    ]


def _gpus() -> list[str]:
    return _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()


def _said(*words: str) -> str:
    """What a program says; nothing where it is not installed or fails."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
