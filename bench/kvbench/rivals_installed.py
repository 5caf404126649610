"""The rivals that `scripts/peers install` has put beside the checkout, each in a virtual environment of its own."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import kvbench

FOLDER_VARIABLE = "KVBENCH_PEERS"
_BENCH = Path(kvbench.__file__).parent.parent
_VERSIONS_DEADLINE_S = 30.0
_PRINT_VERSIONS = """
import importlib.metadata, json
print(json.dumps({found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}))
"""
_QUIET = {
    "GLOG_minloglevel": "2",
    "NIXL_LOG_LEVEL": "WARN",
    "LMCACHE_LOG_LEVEL": "ERROR",
    "LMCACHE_TRACK_USAGE": "false",
}
_NAMED = ("mooncake-transfer-engine-non-cuda", "nixl-cu12", "lmcache", "numpy", "torch")


def folder() -> Path:
    """Where the virtual environments are: `.peers` of the checkout, or what the environment says."""
    return Path(os.environ.get(FOLDER_VARIABLE) or _BENCH.parent / ".peers")


@dataclass(frozen=True, slots=True)
class Installed:
    """One rival's virtual environment."""

    name: str

    @property
    def python(self) -> Path:
        return folder() / self.name / "bin" / "python"

    def program(self, name: str) -> str:
        """A program that its wheel brings."""
        return str(self.python.with_name(name))

    def why_not(self) -> str:
        """Why it cannot be compared; empty when it can."""
        stamp = folder() / self.name / "installed"
        return "" if stamp.is_file() else f"{self.name} is not installed (scripts/peers install {self.name})"

    def prefix(self, settings: Mapping[str, str]) -> tuple[str, ...]:
        """The command under which its processes run: with these variables, and with the adapters importable."""
        variables = {"PYTHONPATH": str(_BENCH), **_QUIET, **settings}
        return ("env", *(f"{name}={value}" for name, value in variables.items()))

    def versions(self) -> dict[str, str]:
        """Of the packages that its figures depend on."""
        return _versions(str(self.python))


@cache
def _versions(python: str) -> dict[str, str]:
    said = subprocess.run(
        [python, "-c", _PRINT_VERSIONS], capture_output=True, text=True, check=True, timeout=_VERSIONS_DEADLINE_S
    )
    found: dict[str, str] = json.loads(said.stdout)
    return {name: found[name] for name in _NAMED if name in found}
