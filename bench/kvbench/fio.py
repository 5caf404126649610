"""Contestant: `fio` on a file beside the tier's, past the page cache if the tier is."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kvbench.storage_point import READ_PERCENT, Storage, StoragePoint, Took
from kvstore.errors import Unavailable

ENGINES = ("libaio", "io_uring", "psync")
_DEADLINE_S = 300
_WORKLOADS = {"read": "randread", "write": "write", "mixed": "randrw"}


def require() -> None:
    """Raises Unavailable where there is no fio."""
    if shutil.which("fio") is None:
        raise Unavailable("fio is not installed (Debian, Ubuntu: apt-get install fio)")


class Fio(Storage):
    """Runs fio on one file in `folder`; its first run makes and fills it."""

    def __init__(self, folder: Path, engine: str, direct: bool) -> None:
        require()
        where = [f"--filename={folder / 'fio'}", f"--ioengine={engine}", f"--direct={int(direct)}"]
        self._command = ["fio", "--name=kvbench", "--output-format=json", "--randrepeat=0", *where]

    def move(self, point: StoragePoint) -> Took:
        size = [f"--bs={point.block_bytes}", f"--size={point.total_bytes}", f"--iodepth={point.depth}"]
        work = [f"--rw={_WORKLOADS[point.operation]}", f"--rwmixread={READ_PERCENT}"]
        job = self._run([*size, *work, f"--fdatasync={point.blocks_per_sync}"])
        seconds = job["job_runtime"] / 1e3
        moved = sum(job[side]["io_bytes"] for side in ("read", "write"))
        return Took(seconds, moved, (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds)

    def _run(self, words: list[str]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                [*self._command, *words], capture_output=True, text=True, timeout=_DEADLINE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"fio did not end within {_DEADLINE_S} s") from error
        if done.returncode != 0:
            raise Unavailable(f"fio: {(done.stderr or done.stdout).strip()[-500:]}")
        # Warnings stand before the object.
        jobs = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        job: dict[str, Any] = jobs[0]
        return job
