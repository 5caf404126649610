"""The file in which a server tells its address, once it listens."""

import os
import tempfile
from pathlib import Path

from kvstore.errors import ConfigError


def write_address(path: str, text: str) -> None:
    """Readers see the whole text or none of it. An empty path writes nothing. Raises ConfigError."""
    if not path:
        return
    target = Path(path)
    try:
        # A name that nobody guesses: where all users write, a link to another file could wait under it.
        descriptor, fresh = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with open(descriptor, "w") as file:
            file.write(text)
        os.replace(fresh, target)
    except OSError as error:
        raise ConfigError(f"address_file {path}: {error.strerror}") from error
