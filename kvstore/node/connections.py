"""Both ends of a connection between two nodes' fabrics, kept together.

A closed endpoint tells the other side nothing (see `kvstore.fabric.ucx`): an owner would go on pushing into a
connection that its reader gave up. So a reader counts how often it gave up its connection to an owner, and says the
count when it opens a transfer; the owner answers a higher count with a fresh connection.
"""

import weakref
from collections import Counter, OrderedDict

from kvstore.fabric.base import Fabric, Peer
from kvstore.node.progress import Moves, Users

_READERS_MAX = 1024


class Connections:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._given_up: Counter[str] = Counter()
        self._counted: weakref.WeakSet[Peer] = weakref.WeakSet()
        self._moves: weakref.WeakKeyDictionary[Peer, Moves] = weakref.WeakKeyDictionary()
        self._sent: weakref.WeakKeyDictionary[Peer, Moves] = weakref.WeakKeyDictionary()
        self._users: weakref.WeakKeyDictionary[Peer, Users] = weakref.WeakKeyDictionary()
        self._readers: OrderedDict[bytes, int] = OrderedDict()
        self._to_readers: weakref.WeakValueDictionary[bytes, Peer] = weakref.WeakValueDictionary()

    def number(self, owner: str) -> int:
        """The reader's count for an owner's address."""
        return self._given_up[owner]

    def give_up(self, owner: str, peer: Peer) -> None:
        """This side, the reader, has closed or lost its connection to an owner. Loads may share it: counted once."""
        if peer not in self._counted:
            self._counted.add(peer)
            self._given_up[owner] += 1

    def moves(self, peer: Peer) -> Moves:
        """What the transfers that come over a connection count together."""
        return self._moves.setdefault(peer, Moves(users=self._users_of(peer)))

    def sent(self, peer: Peer) -> Moves:
        """What those that go over it do."""
        return self._sent.setdefault(peer, Moves(users=self._users_of(peer)))

    def _users_of(self, peer: Peer) -> Users:
        return self._users.setdefault(peer, Users())

    async def to_reader(self, fabric: Fabric, address: bytes, number: int) -> Peer:
        """The owner's connection to a reader, made anew when the reader gave the last one up. Raises InvalidInput.

        Only the one that the reader had is closed, never one in the moment of being made: with that UCX may end the
        reader's next one as well."""
        had = self._to_readers.get(address)
        if number > self._readers.get(address, number) and had is not None and had.alive:
            self._readers[address] = number  # who asks meanwhile finds it done
            await had.close()
        peer = self._to_readers[address] = fabric.connect(address)
        self._readers[address] = max(self._readers.pop(address, number), number)
        if len(self._readers) > _READERS_MAX:
            self._readers.popitem(last=False)
        return peer
