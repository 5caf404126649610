"""What a process has of the memory, and a directory of the disk, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Resident:
    """total_bytes: of all pages that are there. private_bytes: of those that no file stands behind."""

    total_bytes: int
    private_bytes: int


def resident(process_id: int) -> Resident:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return Resident(*(int(said[name][0]) * 1024 for name in ("VmRSS", "RssAnon")))


def on_disk(folder: Path) -> int:
    """Bytes of the files in a directory, without their holes."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
