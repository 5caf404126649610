"""The machine that a figure was measured on: without it a figure says nothing."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = ("kvstore", "ucxx-cu12", "ucxx-cu13", "libucx-cu12", "libucx-cu13", "grpcio", "numpy", "lmdb", "xxhash")


@cache
def describe() -> dict[str, Any]:
    """CPUs, memory, kernel, NICs, GPUs and versions; what cannot be found out is left out."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nics": _nics(),
        "gpus": _gpus(),
        "versions": _versions(),
    }


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
    rdma = Path("/sys/class/infiniband")
    for path in sorted(rdma.iterdir()) if rdma.is_dir() else ():
        found[path.name] = (path / "ports/1/rate").read_text().strip()
    return found


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
