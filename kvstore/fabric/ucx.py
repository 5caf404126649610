"""UCX fabric: tag messages over UCXX's core objects, one context and one progress thread per network interface.

How it works. UCXX's progress thread sleeps in epoll and moves the bytes; operations are handed to it ("delayed
submission") and marked completed by it. The event loop asks the pending requests whether they are, and only while
there are some (`Ticker`): an idle fabric has no wake-up at all.

Peers connect by worker address, each side for itself, and receives are posted on the endpoint, because only then do
they end with it. UCX reports a dead peer (connection reset) through the endpoint's close callback, on the progress
thread; a stopped one is not reported. UCXX cannot take back a single request: `close_blocking` force-closes the
endpoint and ends all of them, also one that is half done, and no byte is written afterwards. It waits for the progress
thread, so it runs in a thread of its own. (`UCXEndpoint.close` does not end requests towards a stopped peer.)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import xxhash

from kvstore.config import FabricConfig
from kvstore.errors import BufferMismatch, Closed, PeerLost
from kvstore.fabric import ucp
from kvstore.fabric.base import Buffer
from kvstore.fabric.liveness import Liveness, settle
from kvstore.fabric.memory import host_view, on_device
from kvstore.fabric.sealed import sealed, unsealed
from kvstore.fabric.tags import Tags
from kvstore.fabric.ticker import Progress, Ticker
from kvstore.fabric.ucx_context import library, make_context, usable_transports

logger = logging.getLogger(__name__)

MARK = b"kvucx1"
"""UCX takes a worker address as it stands and crashes on a wrong one: ours can be told."""
CLOSE_ATTEMPT_NS = 100_000_000
CLOSE_ATTEMPTS = 2
SETTLE_S = 1.0
DRAIN_S = 0.2
DRAIN_QUIET_S = 0.02
CLOSERS_MAX = 8
"""Endpoints that are closed at a time; each close waits for the progress thread."""


class _Operation(NamedTuple):
    array: Any
    """Keeps the buffer, and what UCXX knows about it, until the request is completed."""
    future: "asyncio.Future[None]"


class UcxPeer:
    """One endpoint, and the requests on it."""

    def __init__(self, fabric: "UcxFabric", address: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._fabric, self._address, self._loop = fabric, address, loop
        self._endpoint: Any = None
        self._name = f"peer {xxhash.xxh3_64_hexdigest(address)[:8]}"
        self._liveness = Liveness(loop)
        self._operations: dict[Any, _Operation] = {}
        self._settling: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<UcxPeer {self._name} alive={self.alive} pending={self.pending}>"

    @property
    def alive(self) -> bool:
        return self._liveness.alive

    @property
    def pending(self) -> int:
        return len(self._operations)

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._liveness.on_lost(callback)

    def send(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        source = self._fabric.array(buffer, writable=False)
        return self._post("tag_send", tag, source)

    def receive(self, tag: int, buffer: Buffer) -> "asyncio.Future[None]":
        target = self._fabric.array(buffer, writable=True)
        return self._post("tag_recv", tag, target)

    async def close(self) -> None:
        self._liveness.close()
        if self._endpoint is not None:
            await asyncio.shield(self._settle_soon())

    # ---- for its fabric ----

    def open(self, endpoint: Any) -> None:
        """From now on operations can be posted."""
        self._endpoint = endpoint
        try:
            endpoint.set_close_callback(self._ended_by_ucx)
        except RuntimeError as error:  # it has ended already
            self._lost(str(error))

    def unreachable(self, reason: str) -> None:
        """Instead of `open`: every operation fails."""
        self._liveness.lose(f"{self._name} is not reached: {reason}")

    def transports(self) -> set[str]:
        """What UCX chose for this endpoint."""
        handle = self._endpoint.handle if self.alive else 0
        return ucp.transports(handle) if handle else set()

    def collect(self) -> int:
        """Ends the futures of completed requests; how many requests were."""
        completed = [request for request in self._operations if request.completed]
        for request in completed:
            operation = self._operations.pop(request)
            if request.status == 0:
                settle(operation.future, None)
            elif self._liveness.alive:
                settle(operation.future, PeerLost(f"{self._name}: {_failure(request)}"))
            else:
                settle(operation.future, self._liveness.error())
        return len(completed)

    # ---- its own ----

    def _post(self, verb: str, tag: int, array: Any) -> "asyncio.Future[None]":
        if not self._liveness.alive:
            return self._liveness.refused()
        api = library().api
        try:
            request = getattr(self._endpoint, verb)(array, api.UCXXTag(tag))
        except api.UCXError as error:
            self._lost(str(error))
            return self._liveness.refused()
        future: asyncio.Future[None] = self._loop.create_future()
        self._operations[request] = _Operation(array, future)
        self._fabric.ticker.wake()
        return future

    def _ended_by_ucx(self) -> None:
        # On the progress thread; the loop may be gone when the process is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lost, "the connection was reset")

    def _lost(self, reason: str) -> None:
        if self._liveness.lose(f"{self._name}: {reason}"):
            self._settle_soon()

    def _settle_soon(self) -> "asyncio.Task[None]":
        if self._settling is None:
            self._fabric.forget(self._address, self)
            self._settling = self._loop.create_task(self._settle())
        return self._settling

    async def _drain(self) -> None:
        """Lets what is moving arrive. When both sides force-close with bytes in the socket, UCX's TCP transport uses an
        endpoint that it has freed, and the process crashes."""
        deadline = self._loop.time() + DRAIN_S
        moved = self._loop.time()
        while self._operations and self._endpoint.alive and self._loop.time() < min(moved + DRAIN_QUIET_S, deadline):
            await asyncio.sleep(0.002)
            if self.collect():
                moved = self._loop.time()

    async def _settle(self) -> None:
        deadline = self._loop.time() + SETTLE_S
        await self._drain()
        try:
            await self._fabric.run(self._endpoint.close_blocking, CLOSE_ATTEMPT_NS, CLOSE_ATTEMPTS)
        except library().api.UCXError as error:
            logger.warning("%s: closing the endpoint: %s", self._name, error)
        self.collect()
        while self._operations and self._loop.time() < deadline:
            await asyncio.sleep(0.001)
            self.collect()
        self._endpoint.remove_close_callback()
        if self._operations:
            # A sender of an older release may do this, with eager fragments (see `context_settings`). The buffers stay
            # ours, and so do the futures: a lie here would be a write into a reused slot.
            logger.error("%s: %d operations did not end with their endpoint", self._name, len(self._operations))
            return
        self._endpoint = None
        self._fabric.settled(self)


class UcxFabric:
    """One UCX context and worker. Raises FabricUnavailable where there is no UCXX, device or transport."""

    def __init__(self, config: FabricConfig) -> None:
        api = library().api
        self._config = config
        self._context = make_context(config)
        self._worker = api.UCXWorker(self._context, enable_delayed_submission=True, enable_python_future=False)
        self._worker.init_blocking_progress_mode()
        self._address = sealed(MARK, self._worker.address.tobytes())
        self._tags = Tags()
        self._peers: dict[bytes, UcxPeer] = {}
        self._unsettled: set[UcxPeer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: Ticker | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closers = ThreadPoolExecutor(CLOSERS_MAX, thread_name_prefix="ucx-close")
        # No timeout in epoll: submissions, signals and sockets wake it.
        self._worker.start_progress_thread(polling_mode=False, epoll_timeout=-1)

    def __repr__(self) -> str:
        return f"<UcxFabric {self.transport} peers={len(self._peers)}>"

    @property
    def address(self) -> bytes:
        return self._address

    @property
    def transport(self) -> str:
        used = set().union(*(peer.transports() for peer in self._peers.values()))
        return "+".join(sorted(used or usable_transports(self._context)))

    def next_tag(self) -> int:
        return self._tags.next()

    def connect(self, address: bytes) -> UcxPeer:
        if self._closing is not None:
            raise Closed("the fabric was closed")
        known = self._peers.get(address)
        if known is not None:
            return known
        worker_address = unsealed(MARK, address, "UCX")
        peer = UcxPeer(self, address, self._bound_loop())
        api = library().api
        try:
            endpoint = self._worker.create_endpoint_from_worker_address(
                api.UCXAddress.create_from_buffer(bytearray(worker_address)), self._config.error_handling
            )
        except api.UCXError as error:  # its process is gone, or there is no transport in common
            peer.unreachable(str(error))
            return peer
        self._peers[address] = peer
        self._unsettled.add(peer)
        peer.open(endpoint)
        return peer

    async def close(self) -> None:
        self._bound_loop()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- for its peers ----

    def array(self, buffer: Buffer, writable: bool) -> Any:
        """UCXX's view of a buffer."""
        if not on_device(buffer):
            return library().array(host_view(buffer, writable))
        array = library().array(buffer)
        if not self._config.cuda:
            raise BufferMismatch("device memory needs a fabric with cuda = true")
        if not array.c_contiguous or not array.nbytes:
            raise BufferMismatch(f"a contiguous, non-empty device buffer is needed, not shape {array.shape}")
        return array

    @property
    def ticker(self) -> Ticker:
        assert self._ticker is not None, "made by the first connection"
        return self._ticker

    async def run(self, call: Callable[..., None], *args: Any) -> None:
        """Runs what waits for the progress thread."""
        await asyncio.get_running_loop().run_in_executor(self._closers, call, *args)

    def forget(self, address: bytes, peer: UcxPeer) -> None:
        """The next `connect` makes a new peer."""
        if self._peers.get(address) is peer:
            del self._peers[address]

    def settled(self, peer: UcxPeer) -> None:
        """Nothing is left to ask this peer."""
        self._unsettled.discard(peer)

    # ---- its own ----

    def _bound_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._ticker is None:
            self._loop, self._ticker = loop, Ticker(loop, self._tick)
        assert loop is self._loop, "a fabric belongs to one event loop"
        return loop

    def _tick(self) -> Progress:
        ended = pending = 0
        for peer in self._unsettled:
            if peer.pending:
                ended += peer.collect()
                pending += peer.pending
        return Progress(ended, pending)

    async def _close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in [*self._unsettled]))
        self.ticker.close()
        await self.run(self._dismantle)
        self._closers.shutdown()

    def _dismantle(self) -> None:
        self._refuse_unexpected()
        self._worker.stop_progress_thread()
        # The last references: UCX gives back its memory and descriptors here.
        self._worker = self._context = None

    def _refuse_unexpected(self) -> None:
        """Truncates the messages that nobody wanted: the worker's destructor would fetch them, and wait for ever on a
        sender that is stopped."""
        api = library().api
        deadline = time.monotonic() + SETTLE_S
        while found := self._worker.tag_probe(api.UCXXTag(0), api.UCXXTagMask(0), remove=True):
            target = library().array(bytearray(1))
            request = self._worker.tag_recv_with_handle(target, found)
            while not request.completed and time.monotonic() < deadline:
                time.sleep(0.0001)


def _failure(request: Any) -> str:
    try:
        request.check_error()
    except library().api.UCXError as error:
        return str(error)
    return f"status {request.status}"
