"""Fabric: bytes between processes.

A `Fabric` is this process's end on one network interface; a `Peer` is one connection to another fabric, made from that
one's `address`. Each side connects to the other. Bytes are *pushed*: the receiver posts a receive under a tag of its
own, tells the sender the tag and the length (over gRPC), and the sender sends. Both operations are posted
synchronously and return a future.

The contract, held by tests/contracts/fabric.py for every implementation:

- A tag is used once. `next_tag` never repeats in the life of a fabric. A receive is posted on the peer that sends.
- A buffer belongs to the fabric until its *operation* has ended. Cancelling the future (which is what the cancel of a
  task does that awaits it) ends the waiting only: the operation goes on, the fabric holds the buffer, and `pending`
  counts it. Who needs the buffer back waits under `asyncio.shield` or `asyncio.wait`, or closes the peer.
- Peer death ends every pending operation of that peer with `PeerLost` within 100 ms of the kernel's noticing.
- `Peer.close` settles every pending operation within 1 s, `Closed` for those that had not finished; afterwards no byte
  is written to their buffers, whatever the other side does. The other side's peer is lost within 3 s by itself, if the
  two had met (a message went over); told over gRPC it closes sooner. Until it has, large messages between its old
  connection and a new one do not arrive.
- A peer that only goes silent (stopped, link down) is not noticed here: deadlines are the caller's, and `Peer.close`
  works on it as on any other.
- Messages that nobody has posted a receive for are never written anywhere, and may be thrown away: a sender waits until
  it is told the tag.
- A message longer than the receive's buffer ends the receive with `PeerLost` (the sender broke the agreement) and
  writes nothing past the buffer. A shorter one fills the beginning, undetected: the receiver's checksum tells.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

Buffer = Any
"""Contiguous bytes, at least one: the buffer protocol, or `__cuda_array_interface__`."""


class Peer(Protocol):
    """One connection. All methods belong to the event loop's thread; none but `close` waits."""

    @property
    def alive(self) -> bool:
        """False once the peer was lost or closed; an operation posted then fails at once, with a failed future."""

    @property
    def pending(self) -> int:
        """Operations posted and not ended, those that nobody waits for any more included."""

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Calls back once, on the event loop, when the peer is lost (not when it is closed from here); soon when it
        was lost already."""

    def send(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        """Posts a send. The future ends with None, PeerLost or Closed.

        None means that the buffer may be reused, not that the other side has the bytes. Raises BufferMismatch when
        the buffer is empty, not contiguous, or of a kind of memory that the fabric cannot reach.
        """

    def receive(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        """Posts a receive of exactly the buffer's length. The future ends with None, PeerLost or Closed.

        Raises BufferMismatch as `send` does, and when the buffer is read-only.
        """

    async def close(self) -> None:
        """Ends the connection and settles all its operations. May be called twice."""


class Fabric(Protocol):
    """This process's end of one network. Belongs to one event loop."""

    @property
    def address(self) -> bytes:
        """What another fabric of the same kind connects to."""

    @property
    def transport(self) -> str:
        """What carries the bytes, as the implementation reports it: "tcp", "rc_mlx5", "sockets", "loopback"; several
        are joined by "+". Before the first connection: what may carry them."""

    def next_tag(self) -> int:
        """A tag (64 bits) that was never given before."""

    def connect(self, address: bytes) -> Peer:
        """A connection to another fabric; the same object while it is alive. Does not wait; a peer that is not there
        shows by its first operation. Raises InvalidInput when `address` is not one, Closed after `close`."""

    async def close(self) -> None:
        """Closes all peers and gives everything back: threads, descriptors, memory. May be called twice."""
