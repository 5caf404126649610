"""Files with secrets in them."""

import contextlib
import os
from pathlib import Path


def write_private(path: Path, text: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment. Raises OSError that names the path."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
