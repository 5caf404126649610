"""TCP fabric: messages over plain sockets, for networks without RDMA.

How it works. Each side connects to the other, and each connection carries messages one way: a header of tag and length,
then the bytes, which the receiver reads straight into the buffer that waits for the tag. Before, both have proved that
they know the secret of the fabric that is connected to (`tcp_greeting`). Each connection has a thread of its own
(`tcp_streams`), the event loop is told of what has ended in batches, and an idle fabric has no wake-up at all.

A dead process is noticed by either connection's end; a stopped one is not. `close` shuts both down, which ends the
threads, and settles what is left when they touch no buffer any more.
"""

import asyncio
import errno
import logging
import secrets
import socket
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import xxhash

from kvstore.config import FabricConfig
from kvstore.errors import Closed, FabricUnavailable, InvalidInput, KVStoreError
from kvstore.fabric.base import Buffer
from kvstore.fabric.liveness import Liveness, settle
from kvstore.fabric.memory import host_only_view
from kvstore.fabric.tags import Tags
from kvstore.fabric.tcp_address import (
    SECRET_BYTES,
    Endpoint,
    TcpAddress,
    common_share,
    device_ips,
    family,
    this_host,
)
from kvstore.fabric.tcp_greeting import Greeting, heard
from kvstore.fabric.tcp_streams import Calls, Hangups, Operation, ReceiveStream, SendStream

logger = logging.getLogger(__name__)

_REFUSAL = "plain sockets move host memory only; device memory needs UCX and cuda = true"
CONNECT_S = 5.0
STAGGER_S = 0.025
"""A fabric's addresses are tried one this much after the other, and the first that answers is taken."""
GREETING_S = 5.0
GREETINGS_MAX = 64
"""Connections that have not said yet who they are; one more ends the oldest, which had the most time to."""
UNCLAIMED_MAX = 256
"""Connections of fabrics that nobody here has connected to; one more ends the oldest."""
LONE_S = 1.0
"""How long a peer waits for another connection from there when one has ended between two messages."""
EXHAUSTED_S = 1.0
"""Until a connection is accepted again, where there was no descriptor for one."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds and tries until a host that is gone is noticed where nothing is under way."""


class TcpPeer:
    """Two connections: the one that is made here carries the sends, the one that is made there the receives."""

    def __init__(self, fabric: "TcpFabric", address: bytes, there: TcpAddress) -> None:
        self._fabric, self._address, self._loop = fabric, address, asyncio.get_running_loop()
        self._name = f"peer {xxhash.xxh3_64_hexdigest(address)[:8]}"
        self._liveness = Liveness(self._loop)
        self._operations: set[Operation] = set()
        self._posted: SimpleQueue[Operation | None] = SimpleQueue()
        self._expected: dict[int, Operation] = {}
        self._streams: set[SendStream | ReceiveStream] = set()
        self._outgoing: SendStream | None = None
        self._incoming: ReceiveStream | None = None
        self._lone: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None
        self._opening = self._loop.create_task(self._open(there))

    def __repr__(self) -> str:
        return f"<TcpPeer {self._name} alive={self.alive} pending={self.pending}>"

    @property
    def alive(self) -> bool:
        return self._liveness.alive

    @property
    def pending(self) -> int:
        return len(self._operations)

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._liveness.on_lost(callback)

    def send(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        view = host_only_view(buffer, False, _REFUSAL)
        return self._post(self._posted.put, tag, view)

    def receive(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        view = host_only_view(buffer, True, _REFUSAL)
        return self._post(self._expect, tag, view)

    async def close(self) -> None:
        self._liveness.close()
        await asyncio.shield(self._settle_soon())

    # ---- for its fabric ----

    @property
    def incoming(self) -> ReceiveStream | None:
        """The connection that was made there."""
        return self._incoming

    def adopt(self, incoming: ReceiveStream) -> None:
        """Takes a connection that was made there, in the place of an earlier one."""
        if self._incoming is not None:
            self._incoming.shut()
        if self._lone is not None:
            self._lone.cancel()
        self._incoming = incoming
        self._streams.add(incoming)
        incoming.claim, incoming.done = self._claim, self._done
        incoming.lost = partial(self._incoming_ended, incoming)

    def lose(self, reason: str) -> None:
        if self._liveness.lose(f"{self._name}: {reason}"):
            self._settle_soon()

    # ---- its own ----

    def _post(self, start: Callable[[Operation], None], tag: int, view: memoryview) -> "asyncio.Future[None]":
        if not self.alive:
            return self._liveness.refused()
        operation = Operation(tag, view, self._loop.create_future())
        self._operations.add(operation)
        start(operation)
        return operation.future

    def _expect(self, operation: Operation) -> None:
        self._expected[operation.tag] = operation

    def _claim(self, tag: int) -> Operation | None:
        """In the receiving thread."""
        return self._expected.pop(tag, None)

    def _done(self, operation: Operation, error: KVStoreError | None) -> None:
        self._operations.discard(operation)
        settle(operation.future, error)

    async def _open(self, there: TcpAddress) -> None:
        try:
            connection = await self._fabric.reach(there)
        except OSError as error:
            self.lose(f"is not reached: {error.strerror or str(error) or type(error).__name__}")
            return
        self._outgoing = SendStream(connection, self._fabric.calls, self._posted)
        self._outgoing.done, self._outgoing.lost = self._done, self._outgoing_ended
        self._streams.add(self._outgoing)
        self._fabric.hangups.watch(connection.fileno(), lambda: self.lose("the connection was reset"))
        self._outgoing.start()

    def _outgoing_ended(self, reason: str | None) -> None:
        assert self._outgoing is not None
        self._fabric.hangups.forget(self._outgoing.fileno())
        self.lose(reason or "the connection was closed")

    def _incoming_ended(self, incoming: ReceiveStream, reason: str | None) -> None:
        """Between two messages it may have been that of the other side's former peer, which came late: the present one
        follows. A side that is gone takes the outgoing connection with it."""
        self._streams.discard(incoming)
        if reason is not None:
            self.lose(reason)
        elif self._incoming is incoming:
            self._incoming = None
            self._lone = self._loop.call_later(LONE_S, self.lose, "its connection ended")

    def _settle_soon(self) -> "asyncio.Task[None]":
        if self._settling is None:
            self._fabric.forget(self._address, self)
            self._settling = self._loop.create_task(self._settle())
        return self._settling

    async def _settle(self) -> None:
        self._opening.cancel()
        await asyncio.wait({self._opening})
        streams = [*self._streams]
        for stream in streams:
            stream.shut()
        for stream in streams:
            await stream.ended.wait()
        for operation in [*self._operations]:
            self._done(operation, self._liveness.error())
        self._expected.clear()
        self._fabric.settled(self)


class TcpFabric:
    """A listener for each address of the device, and the peers. Belongs to the event loop on which it is made.

    Raises FabricUnavailable for a device that is not there or has no address, and for what plain sockets cannot do.
    """

    def __init__(self, config: FabricConfig) -> None:
        if config.cuda or config.service_level != "auto":
            raise FabricUnavailable("kind = tcp has neither cuda nor service_level: both need UCX")
        self._loop = asyncio.get_running_loop()
        self._traffic_class = None if config.traffic_class == "auto" else int(config.traffic_class)
        self._any_device = not config.device
        self._own_ips = frozenset(device_ips(""))
        ips = device_ips(config.device)
        self._listeners = [listener for ip in ips for listener in self._listening(ip)]
        if not self._listeners:
            raise FabricUnavailable(f"TCP cannot listen on any of {', '.join(ips)}")
        endpoints = tuple(listener.getsockname()[:2] for listener in self._listeners)
        self._ips = [ip for ip, _ in endpoints]
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._address = TcpAddress(self._secret, this_host(), endpoints).encoded()
        self.calls = Calls(self._loop)
        self.hangups = Hangups(self._loop)
        self._tags = Tags()
        self._peers: dict[bytes, TcpPeer] = {}
        self._unsettled: set[TcpPeer] = set()
        self._greetings: dict[asyncio.Task[None], None] = {}
        """Oldest first."""
        self._unclaimed: dict[bytes, ReceiveStream] = {}
        """Connections of fabrics that nobody has connected to from here yet, oldest first."""
        self._reached = 0
        self._closing: asyncio.Task[None] | None = None
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def __repr__(self) -> str:
        return f"<TcpFabric peers={len(self._peers)}>"

    @property
    def address(self) -> bytes:
        return self._address

    @property
    def transport(self) -> str:
        return "sockets"

    def next_tag(self) -> int:
        return self._tags.next()

    def connect(self, address: bytes) -> TcpPeer:
        if self._closing is not None:
            raise Closed("the fabric was closed")
        peer = self._peers.get(address)
        if peer is None:
            peer = TcpPeer(self, address, TcpAddress.decoded(address))
            self._peers[address] = peer
            self._unsettled.add(peer)
            waiting = self._unclaimed.pop(address, None)
            if waiting is not None:
                peer.adopt(waiting)
        return peer

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- for its peers ----

    async def reach(self, there: TcpAddress) -> socket.socket:
        """A connection to another fabric, which knows whose it is. Raises OSError: of the last address that failed."""
        self._reached += 1
        greeting = Greeting(self._address, self._reached, there.secret)
        waits = enumerate(there.nearest_first(self._own_ips))
        trying = [self._loop.create_task(self._greet(endpoint, i * STAGGER_S, greeting)) for i, endpoint in waits]
        failure, taken = OSError("no address that has a route from here"), None
        try:
            for answer in asyncio.as_completed(trying):
                try:
                    connection = await answer
                    greeting.take(connection)
                except OSError as error:
                    failure = error
                else:
                    taken = connection
                    return taken
            raise failure
        finally:
            for task in trying:
                task.cancel()
                task.add_done_callback(lambda task: _close_other(task, taken))

    def forget(self, address: bytes, peer: TcpPeer) -> None:
        """The next `connect` makes a new peer."""
        if self._peers.get(address) is peer:
            del self._peers[address]

    def settled(self, peer: TcpPeer) -> None:
        """Nothing is left to wait for at this peer."""
        self._unsettled.discard(peer)

    # ---- its own ----

    async def _greet(self, endpoint: Endpoint, wait_s: float, greeting: Greeting) -> socket.socket:
        await asyncio.sleep(wait_s)
        connection = self._socket(endpoint[0])
        try:
            async with asyncio.timeout(CONNECT_S):
                self._leave_by_device(connection, endpoint[0])
                await self._loop.sock_connect(connection, endpoint)
                await greeting.say(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _leave_by_device(self, connection: socket.socket, ip: str) -> None:
        """Gives a connection the address of the fabric's own device, where it is to use no other. Raises OSError."""
        if self._any_device:
            return
        own = [each for each in self._ips if family(each) == connection.family]
        if not own:
            raise OSError(errno.EADDRNOTAVAIL, f"the device has no address of the kind of {ip}")
        connection.bind((max(own, key=lambda each: common_share(each, ip)), 0))

    def _socket(self, ip: str) -> socket.socket:
        connection = socket.socket(family(ip), socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, name, value)
        if self._traffic_class is not None:
            level = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if ":" in ip else (socket.IPPROTO_IP, socket.IP_TOS)
            connection.setsockopt(*level, self._traffic_class)
        return connection

    def _listening(self, ip: str) -> list[socket.socket]:
        """A listener on a free port; none where the address cannot be used (yet). What it accepts is as it is."""
        listener = self._socket(ip)
        try:
            listener.bind((ip, 0))
            listener.listen()
        except OSError as error:
            logger.warning("the fabric does not listen on %s: %s", ip, error)
            listener.close()
            return []
        return [listener]

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it has gone again, or there is no descriptor left for it
            if error.errno in _EXHAUSTED:
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(EXHAUSTED_S, self._listen_again, listener)
            return
        connection.setblocking(False)
        if len(self._greetings) >= GREETINGS_MAX:
            oldest = next(iter(self._greetings))
            del self._greetings[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._greeted(connection))
        self._greetings[task] = None
        task.add_done_callback(lambda task: self._greeting_ended(task, connection))

    def _listen_again(self, listener: socket.socket) -> None:
        if self._closing is None:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _greeting_ended(self, task: "asyncio.Task[None]", connection: socket.socket) -> None:
        self._greetings.pop(task, None)
        if task.cancelled():  # perhaps before it began
            connection.close()

    async def _greeted(self, connection: socket.socket) -> None:
        """Hears whose the connection is, and gives it to that peer."""
        try:
            async with asyncio.timeout(GREETING_S):
                address, number = await heard(connection, self._secret)
            TcpAddress.decoded(address)
        except (OSError, InvalidInput) as error:
            connection.close()
            logger.debug("a connection was refused: %s", error)
            return
        self._take(address, ReceiveStream(connection, self.calls, number))

    def _take(self, address: bytes, stream: ReceiveStream) -> None:
        peer = self._peers.get(address)
        earlier = self._unclaimed.get(address) if peer is None else peer.incoming
        if earlier is not None and earlier.number >= stream.number:
            stream.discard()
            return
        if peer is not None:
            peer.adopt(stream)
        else:
            if earlier is None and len(self._unclaimed) >= UNCLAIMED_MAX:
                earlier = self._unclaimed.pop(next(iter(self._unclaimed)))
            if earlier is not None:
                earlier.shut()
            self._unclaimed[address] = stream
            stream.lost = lambda _: self._unclaimed_ended(address, stream)
        stream.start()

    def _unclaimed_ended(self, address: bytes, stream: ReceiveStream) -> None:
        if self._unclaimed.get(address) is stream:
            del self._unclaimed[address]

    async def _close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        for task in [*self._greetings]:
            task.cancel()
        unclaimed = [*self._unclaimed.values()]
        for stream in unclaimed:
            stream.shut()
        await asyncio.gather(*(peer.close() for peer in [*self._unsettled]))
        await asyncio.gather(*(stream.ended.wait() for stream in unclaimed))
        await asyncio.gather(*self._greetings, return_exceptions=True)
        self.hangups.close()


def _close_other(task: "asyncio.Task[socket.socket]", taken: socket.socket | None) -> None:
    """Of those that were tried at once."""
    if not task.cancelled() and task.exception() is None and task.result() is not taken:
        task.result().close()
