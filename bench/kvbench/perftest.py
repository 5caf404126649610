"""Contestant: `ucx_perftest`, the bandwidth test that ships with UCX, on the same transports and settings."""

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from kvbench.pair import Point
from kvstore.config import FabricConfig
from kvstore.errors import Unavailable
from kvstore.fabric.ucx_context import context_settings

MIB = 1024 * 1024
DEADLINE_S = 60
WARM_UPS = 8


class UcxPerftest:
    """Runs the tool from the libucx wheel. Raises Unavailable when it is not there."""

    def __init__(self, config: FabricConfig) -> None:
        spec = importlib.util.find_spec("libucx")
        if spec is None or spec.origin is None:
            raise Unavailable("ucx_perftest is not installed: it comes with the extras cpu, cu12 and cu13")
        folder = Path(spec.origin).parent
        self._program = str(folder / "bin/ucx_perftest")
        self._environment = _environment(folder / "lib", context_settings(config))

    def move(self, point: Point) -> float:
        """Seconds that the point's bytes took, from the bandwidth that the tool prints."""
        port = _free_port()
        command = [self._program, "-p", str(port)]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as server:
            try:
                return point.moved_bytes / self._bytes_per_s(point, port)
            finally:
                server.kill()

    def _bytes_per_s(self, point: Point, port: int) -> float:
        test = ["-t", "tag_bw", "-s", str(point.size_bytes), "-n", str(point.count), "-w", str(WARM_UPS)]
        command = [self._program, "127.0.0.1", "-p", str(port), *test, "-O", str(point.in_flight), "-f", "-v"]
        deadline = time.monotonic() + DEADLINE_S
        while True:  # until the server listens
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            if done.returncode == 0:
                return float(_column(done.stdout, "overall_bw")) * MIB  # its MB are MiB
            if time.monotonic() > deadline or "refused" not in done.stderr + done.stdout:
                raise Unavailable(f"ucx_perftest: {(done.stderr + done.stdout).strip()[-500:]}")


def _column(csv: str, name: str) -> str:
    names, values = csv.strip().splitlines()[-2:]
    return dict(zip(names.split(","), values.split(","), strict=True))[name]


def _environment(libraries: Path, settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    return kept | {"LD_LIBRARY_PATH": str(libraries)} | {f"UCX_{name}": value for name, value in settings.items()}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
