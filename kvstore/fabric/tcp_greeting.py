"""How a connection of the TCP fabric begins.

Both sides prove that they know the secret of the fabric that is connected to, and neither sends it:

    → nonce (16), number (8), length (2), the address of the fabric that connects, HMAC-SHA256 of all that (32)
    ← HMAC-SHA256 of the nonce (32)
    → one byte: of the connections that were tried at once, this is the one

So who listens where that fabric was thought to be is found out, and somebody else's port takes no message.
"""

import asyncio
import hmac
import secrets
import socket
import struct
from dataclasses import dataclass

from kvstore.errors import InvalidInput

_NONCE_BYTES = 16
_MAC_BYTES = 32
_HEAD = struct.Struct(f"<{_NONCE_BYTES}sQH")
_TAKEN = b"\x01"


@dataclass(frozen=True, slots=True)
class Greeting:
    """Of the fabric at `address`, for the one that has `secret`. number: orders the connections of the former."""

    address: bytes
    number: int
    secret: bytes

    async def say(self, connection: socket.socket) -> None:
        """Raises OSError, also where the other side does not know the secret."""
        loop = asyncio.get_running_loop()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        said = _HEAD.pack(nonce, self.number, len(self.address)) + self.address
        await loop.sock_sendall(connection, said + _mac(self.secret, b"hello", said))
        if not hmac.compare_digest(await _read(connection, _MAC_BYTES), _mac(self.secret, b"heard", nonce)):
            raise ConnectionRefusedError("somebody else listens there")

    @staticmethod
    def take(connection: socket.socket) -> None:
        """Says that this connection is the one. Raises OSError."""
        connection.send(_TAKEN)


async def heard(connection: socket.socket, secret: bytes) -> tuple[bytes, int]:
    """(address, number) of who connects to the fabric that has `secret`. Raises OSError and InvalidInput."""
    loop = asyncio.get_running_loop()
    head = await _read(connection, _HEAD.size)
    nonce, number, length = _HEAD.unpack(head)
    address = await _read(connection, length)
    if not hmac.compare_digest(await _read(connection, _MAC_BYTES), _mac(secret, b"hello", head + address)):
        raise InvalidInput("it does not know the secret of this fabric")
    await loop.sock_sendall(connection, _mac(secret, b"heard", nonce))
    await _read(connection, len(_TAKEN))
    return address, number


def _mac(secret: bytes, purpose: bytes, said: bytes) -> bytes:
    return hmac.digest(secret, purpose + said, "sha256")


async def _read(connection: socket.socket, length: int) -> bytes:
    read = b""
    while len(read) < length:
        more = await asyncio.get_running_loop().sock_recv(connection, length - len(read))
        if not more:
            raise ConnectionResetError("it ended within the greeting")
        read += more
    return read
