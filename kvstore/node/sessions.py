"""Sessions of engines on this host.

A session is bound to a process: a pidfd tells when it has died, and then everything that it held ends. A process that
is merely silent keeps what it maps (its slots are quarantined or revoked by the catalog's rules, never freed under it).
Slabs are handed over as file descriptors on a unix socket; the kernel says which process is at its other end.
"""

import array
import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from kvstore.errors import InvalidInput, KVStoreError, LeaseLost, PermissionRefused, SessionLost
from kvstore.node.tiers.dram import DramMemory
from kvstore.pb import node_pb2

_REQUEST_BYTES_MAX = 4096
_BACKLOG = 64
_GIVEN_UP_MAX = 256  # the latest; older ones have no call under way any more
log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Session:
    """One attached process. `on_end` callbacks run once, when it is over. bound: it has connected for its slabs."""

    id: bytes
    pid: int
    pidfd: int
    tenant: str
    read_only: bool
    attached_ns: int = field(default_factory=time.monotonic_ns)
    bound: bool = False
    on_end: list[Callable[[], object]] = field(default_factory=list)
    given_up: dict[bytes, None] = field(default_factory=dict)

    @property
    def holder(self) -> str:
        return f"session:{self.id.hex()}"

    def give_up(self, lease_id: bytes) -> None:
        """The process wants nothing of this lease, which may not have been asked for yet: its abort overtook it."""
        self.given_up[lease_id] = None
        if len(self.given_up) > _GIVEN_UP_MAX:
            del self.given_up[next(iter(self.given_up))]

    def expect_wanted(self, lease_id: bytes) -> None:
        """Raises LeaseLost for a lease that was given up before it was made."""
        if lease_id in self.given_up:
            raise LeaseLost(f"lease {lease_id.hex()} was given up before it was made")

    def forget(self, callback: Callable[[], object]) -> None:
        """Takes an `on_end` callback back."""
        if callback in self.on_end:
            self.on_end.remove(callback)


class Sessions:
    """All sessions of a node, and the socket that hands slabs to them.

    on_end(session) is called when a session ends, before the session's own callbacks. bind_ns: how long a process may
    take to come for its slabs. Belongs to the event loop.
    """

    def __init__(
        self,
        memory: DramMemory,
        slab_tenant: Callable[[int], str],
        on_end: Callable[[Session], None],
        bind_ns: int,
    ) -> None:
        self._memory = memory
        self._slab_tenant = slab_tenant
        self._on_end = on_end
        self._bind_ns = bind_ns
        self._sessions: dict[bytes, Session] = {}
        self._connections: dict[socket.socket, Session | None] = {}
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def attach(self, pid: int, tenant: str, read_only: bool) -> Session:
        """A session for a running process. Raises InvalidInput for a process that does not exist."""
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise InvalidInput(f"attach: there is no process {pid} on this host") from error
        session = Session(secrets.token_bytes(16), pid, pidfd, tenant, read_only)
        self._sessions[session.id] = session
        asyncio.get_running_loop().add_reader(pidfd, self._end, session, "its process ended")
        return session

    def get(self, session_id: bytes) -> Session:
        """Raises SessionLost for one that ended, or was of another incarnation."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionLost("the node does not know this session: attach again")
        return session

    def tick(self, now_ns: int) -> None:
        """Ends sessions whose process lives but never came for its slabs: it did not hear that it was attached."""
        unheard = [s for s in self._sessions.values() if not s.bound and now_ns - s.attached_ns > self._bind_ns]
        for session in unheard:
            self._end(session, "it was never bound")

    def listen(self, path: Path) -> None:
        """Serves slabs at a unix socket that only this user may open."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        path.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        self._listener, self._path = listener, path
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Ends all sessions and the socket."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            assert self._path is not None
            self._path.unlink(missing_ok=True)
            self._listener = None
        for session in list(self._sessions.values()):
            self._end(session, "the node stops")
        for connection in list(self._connections):
            self._hang_up(connection)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self._connections[connection] = None
            asyncio.get_running_loop().add_reader(connection.fileno(), self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            raw = connection.recv(_REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self._hang_up(connection)
            return
        reply, descriptors = self._answer(connection, raw)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            connection.sendmsg([reply.SerializeToString()], ancillary)
        except OSError:
            self._hang_up(connection)

    def _answer(self, connection: socket.socket, raw: bytes) -> tuple[node_pb2.SlabReply, list[int]]:
        request = node_pb2.SlabRequest()
        try:
            request.ParseFromString(raw)
            session = self._bound(connection, request)
            if request.slab_id == 0:
                return node_pb2.SlabReply(bound=True), []
            if self._slab_tenant(request.slab_id) != session.tenant:
                raise PermissionRefused(f"slab {request.slab_id} is not of tenant {session.tenant!r}")
            shared = self._memory.share(request.slab_id, session.read_only)
        except (KVStoreError, KeyError, ValueError, DecodeError) as error:
            return node_pb2.SlabReply(slab_id=request.slab_id, error=f"{type(error).__name__}: {error}"), []
        reply = node_pb2.SlabReply(
            slab_id=request.slab_id,
            slab_bytes=shared.slab_bytes,
            slot_bytes=shared.slot_bytes,
            hugepages=shared.hugepages,
        )
        return reply, [shared.slab_fd, shared.generations_fd]

    def _bound(self, connection: socket.socket, request: node_pb2.SlabRequest) -> Session:
        """The session of a connection; the first request binds it to the process at its other end."""
        session = self._connections[connection]
        if session is None:
            session = self.get(request.session_id)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, _, _ = struct.unpack("3i", credentials)
            if pid != session.pid:
                raise PermissionRefused(f"the session is of process {session.pid}, not of {pid}")
            self._connections[connection] = session
            session.bound = True
        return session

    def _hang_up(self, connection: socket.socket) -> None:
        session = self._connections.pop(connection, None)
        asyncio.get_running_loop().remove_reader(connection.fileno())
        connection.close()
        if session is not None:
            self._end(session, "it detached")

    def _end(self, session: Session, why: str) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        log.debug("session of process %d is over: %s", session.pid, why)
        asyncio.get_running_loop().remove_reader(session.pidfd)
        os.close(session.pidfd)
        self._on_end(session)
        for callback in session.on_end:
            callback()
