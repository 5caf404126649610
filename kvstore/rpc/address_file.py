"""The file in which a server tells its address, once it listens."""

from pathlib import Path

from kvstore.errors import ConfigError
from kvstore.rpc.private_file import write_private


def write_address(path: str, text: str) -> None:
    """Readers see the whole text or none of it. An empty path writes nothing. Raises ConfigError."""
    if not path:
        return
    try:
        write_private(Path(path), text.encode())
    except OSError as error:
        raise ConfigError(f"address_file {path}: {error.strerror}") from error
