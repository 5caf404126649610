"""Tickets for transfers: what shows a node that another one is registered, now and not some time ago.

The control plane signs one for each node that it knows, and tells all of them the keys by which tickets are checked. A
key signs for a minute and is believed for two more, so a ticket is short-lived without any clock being compared: a node
that the control plane has forgotten, or whose certificate was stolen and never registers, gets no new one.

A ticket is bytes, little-endian: key id (u64), incarnation (u64), node id (UTF-8, the rest), HMAC-SHA256 of all before
(32 bytes). It travels in the metadata of each call between nodes, beside the one before it, for keys do not reach all
nodes at one moment.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvstore.errors import InvalidInput
from kvstore.pb import control_pb2

METADATA_KEY = "kvstore-transfer-ticket-bin"
SECRET_BYTES = 32
TICKETS_MAX = 4
"""Of one call that are looked at."""
_HEAD = struct.Struct("<QQ")
_MAC_BYTES = 32
_NODE_ID_BYTES_MAX = 255


class Key(NamedTuple):
    id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Ticket:
    """One that was read; nothing of it is proved yet."""

    key_id: int
    incarnation: int
    node_id: str
    signed: bytes
    mac: bytes

    def signed_by(self, secret: bytes) -> bool:
        return hmac.compare_digest(self.mac, _mac(secret, self.signed))


def sign(key: Key, node_id: str, incarnation: int) -> bytes:
    text = _HEAD.pack(key.id, incarnation) + node_id.encode()
    return text + _mac(key.secret, text)


def read(ticket: bytes) -> Ticket:
    """Raises InvalidInput for what is none."""
    signed, mac = ticket[:-_MAC_BYTES], ticket[-_MAC_BYTES:]
    name = signed[_HEAD.size :]
    if len(signed) <= _HEAD.size or len(name) > _NODE_ID_BYTES_MAX:
        raise InvalidInput(f"not a transfer ticket ({len(ticket)} bytes)")
    key_id, incarnation = _HEAD.unpack_from(signed)
    try:
        return Ticket(key_id, incarnation, name.decode(), signed, mac)
    except UnicodeDecodeError as error:
        raise InvalidInput("not a transfer ticket: its node id is no text") from error


class KnownKeys:
    """A node's: the keys that it was told, and its own tickets. Those of the telling before count too: after a rotation
    the others may not have heard yet, and a control plane that was started anew has keys of its own."""

    def __init__(self) -> None:
        self._told: Sequence[Key] = ()
        self._before: Sequence[Key] = ()
        self._tickets: list[bytes] = []

    @property
    def newest(self) -> int:
        """Id of the newest key; 0 before any was told."""
        return self._told[0].id if self._told else 0

    def heard(self, message: control_pb2.TransferKeys) -> None:
        """What the control plane tells. A telling that is no other than the last changes nothing."""
        keys = [Key(*pair) for pair in zip(message.ids, message.secrets, strict=False)]
        if not keys or keys[0].id == self.newest:
            return
        self._before, self._told = self._told, keys
        self._tickets = [message.ticket, *self._tickets[:1]]

    def shown(self) -> list[tuple[str, str | bytes]]:
        """What each call to another node carries."""
        return [(METADATA_KEY, ticket) for ticket in self._tickets]

    def holds(self, ticket: bytes) -> bool:
        """Whether a ticket is signed by a key that is believed now."""
        try:
            read_ticket = read(ticket)
        except InvalidInput:
            return False
        return any(
            key.id == read_ticket.key_id and read_ticket.signed_by(key.secret) for key in (*self._told, *self._before)
        )

    def any_holds(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        """Whether a call shows one that does."""
        shown = [value for key, value in metadata if key == METADATA_KEY and isinstance(value, bytes)]
        return any(map(self.holds, shown[:TICKETS_MAX]))


def _mac(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, hashlib.sha256)
