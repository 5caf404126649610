"""The file in which a server tells its address, once it listens."""

import os
from pathlib import Path


def write_address(path: str, text: str) -> None:
    """Readers see the whole text or none of it. An empty path writes nothing."""
    if path:
        target = Path(path)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        fresh.write_text(text)
        fresh.replace(target)
