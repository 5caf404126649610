"""Which host this is."""

import contextlib
import socket
from pathlib import Path


def host_identity() -> str:
    """Equal for processes that share memory: the kernel's boot id."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
