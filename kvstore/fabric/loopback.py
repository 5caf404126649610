"""Loopback fabric: the contract of a fabric inside one process and event loop, with fault switches.

It is for tests: its faults can be placed to the operation. A message stays the sender's until a receive matches it (as
with UCX's rendezvous), then it is copied at once.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.errors import Closed, InvalidInput, KVStoreError, PeerLost
from kvstore.fabric.base import Buffer
from kvstore.fabric.faults import FaultSwitches
from kvstore.fabric.liveness import Liveness, settle
from kvstore.fabric.memory import host_only_view
from kvstore.fabric.tags import Tags

_REFUSAL = "the loopback fabric moves host memory only"
_MAGIC = b"kvloop"
_ADDRESS_BYTES = len(_MAGIC) + 16

_fabrics: dict[bytes, "LoopbackFabric"] = {}
"""Every open fabric of the process."""


@dataclass(eq=False, slots=True)
class _Operation:
    peer: "LoopbackPeer"
    tag: int
    view: memoryview
    future: "asyncio.Future[None]"

    def end(self, error: KVStoreError | None) -> None:
        self.peer.operations.discard(self)
        settle(self.future, error)


class LoopbackPeer:
    """One connection between two fabrics of this process."""

    def __init__(self, fabric: "LoopbackFabric", address: bytes) -> None:
        self._fabric, self._address = fabric, address
        self._loop = asyncio.get_running_loop()
        self._liveness = Liveness(self._loop)
        self.operations: set[_Operation] = set()

    def __repr__(self) -> str:
        return f"<LoopbackPeer {self._address[-4:].hex()} alive={self.alive} pending={self.pending}>"

    @property
    def alive(self) -> bool:
        return self._liveness.alive

    @property
    def pending(self) -> int:
        return len(self.operations)

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._liveness.on_lost(callback)

    def send(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        return self._post(self._fabric.dispatch, tag, host_only_view(buffer, False, _REFUSAL))

    def receive(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        return self._post(self._fabric.expect, tag, host_only_view(buffer, True, _REFUSAL))

    async def close(self) -> None:
        if not self._liveness.close():
            return
        self._settle()
        other = _fabrics.get(self._address)
        if other is not None:
            self._loop.call_soon(other.lost, self._fabric.address)

    def lose(self, reason: str) -> None:
        if self._liveness.lose(reason):
            self._settle()

    def _settle(self) -> None:
        self._fabric.forget(self._address, self)
        for operation in [*self.operations]:
            operation.end(self._liveness.error())

    def _post(self, start: Callable[[_Operation], None], tag: int, view: memoryview) -> "asyncio.Future[None]":
        if self.alive and self._fabric.faults.take_death():
            self._fabric.die()
        if not self.alive:
            return self._liveness.refused()
        operation = _Operation(self, tag, view, self._loop.create_future())
        self.operations.add(operation)
        start(operation)
        return operation.future

    def deliver(self, message: _Operation, corrupt: bool) -> None:
        """Brings a message to the other side, or ends with it when there is none."""
        if message not in self.operations:
            return
        other = _fabrics.get(self._address)
        if other is None:
            self.lose("nobody is at that address")
        elif self._fabric.faults.stalled:
            self._fabric.park(lambda: self.deliver(message, corrupt))
        elif other.faults.stalled:
            other.park(lambda: self.deliver(message, corrupt))
        else:
            other.arrive(message, corrupt)


class LoopbackFabric:
    """One fabric of this process. `faults` are its switches."""

    def __init__(self) -> None:
        self._address = _MAGIC + secrets.token_bytes(16)
        self._tags = Tags()
        self._peers: dict[bytes, LoopbackPeer] = {}
        self._expected: dict[int, _Operation] = {}
        self._unexpected: dict[int, tuple[_Operation, bool]] = {}
        self._parked: list[Callable[[], None]] = []
        self._closed = False
        self.faults = FaultSwitches(self._resume)
        _fabrics[self._address] = self

    def __repr__(self) -> str:
        return f"<LoopbackFabric {self._address[-4:].hex()} peers={len(self._peers)}>"

    @property
    def address(self) -> bytes:
        return self._address

    @property
    def transport(self) -> str:
        return "loopback"

    def next_tag(self) -> int:
        return self._tags.next()

    def connect(self, address: bytes) -> LoopbackPeer:
        if self._closed:
            raise Closed("the fabric was closed")
        if not address.startswith(_MAGIC) or len(address) != _ADDRESS_BYTES:
            raise InvalidInput(f"not the address of a loopback fabric: {address[:16]!r} ({len(address)} bytes)")
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = LoopbackPeer(self, address)
        return peer

    async def close(self) -> None:
        self._closed = True
        _fabrics.pop(self._address, None)
        for peer in [*self._peers.values()]:
            await peer.close()

    def die(self) -> None:
        """Ends as a killed process does: every connection from and to here is lost, and nothing comes here again."""
        self._closed = True
        _fabrics.pop(self._address, None)
        for peer in [*self._peers.values()]:
            peer.lose("this fabric died")
        for other in [*_fabrics.values()]:
            other.lost(self._address)

    # ---- for its peers and those of others ----

    def dispatch(self, message: _Operation) -> None:
        """Sends a message on its way."""
        if self.faults.take_drop():
            message.end(None)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(self.faults.delay_s, message.peer.deliver, message, self.faults.take_corrupt())

    def expect(self, receive: _Operation) -> None:
        """Posts a receive; the message may be waiting already."""
        assert receive.tag not in self._expected, f"tag {receive.tag} is used twice"
        self._expected[receive.tag] = receive
        message, corrupt = self._unexpected.pop(receive.tag, (None, False))
        if message is not None:
            asyncio.get_running_loop().call_soon(message.peer.deliver, message, corrupt)

    def arrive(self, message: _Operation, corrupt: bool) -> None:
        """Copies a message to its receive, or lets it wait for one."""
        receive = self._expected.pop(message.tag, None)
        if receive is None or receive not in receive.peer.operations:
            self._unexpected[message.tag] = message, corrupt
            return
        message.end(None)
        if message.view.nbytes > receive.view.nbytes:
            receive.end(PeerLost(f"a message of {message.view.nbytes} bytes for a buffer of {receive.view.nbytes}"))
            return
        receive.view[: message.view.nbytes] = message.view
        if corrupt:
            receive.view[0] ^= 0xFF
        receive.end(None)

    def park(self, delivery: Callable[[], None]) -> None:
        """Keeps a delivery until this fabric is no longer stalled."""
        self._parked.append(delivery)

    def lost(self, address: bytes) -> None:
        """The fabric at `address` is gone, or has closed its peer."""
        peer = self._peers.get(address)
        if peer is not None:
            peer.lose("the other side has gone")
        ended = [tag for tag, (message, _) in self._unexpected.items() if message not in message.peer.operations]
        for tag in ended:
            del self._unexpected[tag]

    def forget(self, address: bytes, peer: LoopbackPeer) -> None:
        """The next `connect` makes a new peer."""
        if self._peers.get(address) is peer:
            del self._peers[address]
        for tag in [tag for tag, receive in self._expected.items() if receive.peer is peer]:
            del self._expected[tag]

    def _resume(self) -> None:
        parked, self._parked = self._parked, []
        for deliver in parked:
            deliver()
