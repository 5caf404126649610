"""The keys that sign transfer tickets: one signs, the one before it is still believed. They live in memory alone."""

import secrets
import time
from collections.abc import Callable

from kvstore.pb import control_pb2, types_pb2
from kvstore.rpc.transfer_tickets import SECRET_BYTES, Key, sign

ROTATE_S = 60.0


class KeyRing:
    """clock: seconds that never fall."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys = [_new_key()]
        self._since_s = clock()

    @property
    def newest(self) -> int:
        """Id of the key that signs now."""
        now_s = self._clock()
        if now_s - self._since_s >= ROTATE_S:
            self._since_s = now_s
            self._keys = [_new_key(), self._keys[0]]
        return self._keys[0].id

    def told_to(self, address: types_pb2.NodeAddress) -> control_pb2.TransferKeys:
        """The keys, and the node's ticket."""
        assert self.newest
        return control_pb2.TransferKeys(
            ids=[key.id for key in self._keys],
            secrets=[key.secret for key in self._keys],
            ticket=sign(self._keys[0], address.node_id, address.incarnation),
        )


def _new_key() -> Key:
    # Ids are random, so that those of a control plane that was started anew are others.
    return Key(secrets.randbits(63) | 1, secrets.token_bytes(SECRET_BYTES))
