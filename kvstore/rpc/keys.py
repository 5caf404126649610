"""Keys as they come in a message: their number is bounded."""

from kvstore.blocks.keys import KEY_BYTES, unpack_keys
from kvstore.errors import TooLarge
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX


def keys_of(packed: bytes) -> list[bytes]:
    """Raises TooLarge for more keys than a message may have, InvalidInput for what are none."""
    if len(packed) > KEYS_PER_MESSAGE_MAX * KEY_BYTES:
        raise TooLarge(f"{len(packed) // KEY_BYTES} keys in one message are more than {KEYS_PER_MESSAGE_MAX}")
    return unpack_keys(packed)
