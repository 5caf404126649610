"""What this process holds, and how often its threads wake up."""

import asyncio
import os
from pathlib import Path


def held() -> tuple[int, int]:
    """(threads, open descriptors)"""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


async def settled() -> tuple[int, int]:
    """What is held once it no longer falls: a joined thread leaves /proc a moment later."""
    least = held()
    for _ in range(20):
        await asyncio.sleep(0.005)
        least = min(least, held())
    return least


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def wakeups(tasks: set[int]) -> int:
    """How often these threads have gone to sleep so far."""
    texts = [Path(f"/proc/self/task/{task}/status").read_text() for task in tasks & threads()]
    return sum(
        int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("voluntary_ctxt")
    )
