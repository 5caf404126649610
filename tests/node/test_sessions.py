"""Sessions: bound to a process, whose end is theirs; slabs go to that process, if they are its tenant's."""

import array
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kvstore.errors import InvalidInput, SessionLost
from kvstore.node.sessions import Session, Sessions
from kvstore.node.tiers.dram import DramMemory
from kvstore.pb import node_pb2
from tests.waiting import eventually

SECOND_NS = 1_000_000_000
SLAB, FOREIGN = 3, 4
SLOT_BYTES, SLAB_BYTES = 4096, 4 * 4096
TENANTS = {SLAB: "us", FOREIGN: "them"}


class Ended:
    """What happened at the ends of sessions, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def __call__(self, session: Session) -> None:
        self.events.append(session)


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
async def sessions(tmp_path: Path, ended: Ended) -> AsyncIterator[Sessions]:
    memory = DramMemory(hugepages=False)
    for slab_id, tenant in TENANTS.items():
        memory.open_slab(slab_id, SLAB_BYTES, SLOT_BYTES, tenant)
    sessions = Sessions(memory, TENANTS.__getitem__, ended, bind_ns=SECOND_NS)
    sessions.listen(tmp_path / "slabs")
    yield sessions
    sessions.close()
    memory.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, that lives until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


class Connection:
    """A client's side of the slab socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.socket.connect(str(path))

    async def ask(self, session_id: bytes, slab_id: int = 0) -> tuple[node_pb2.SlabReply, list[int]]:
        return await self.send(node_pb2.SlabRequest(session_id=session_id, slab_id=slab_id).SerializeToString())

    async def send(self, raw: bytes) -> tuple[node_pb2.SlabReply, list[int]]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, raw)
        ready = asyncio.Event()
        loop.add_reader(self.socket, ready.set)
        try:
            async with asyncio.timeout(5):
                await ready.wait()
        finally:
            loop.remove_reader(self.socket)
        raw, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(8))
        descriptors = array.array("i")
        for _, _, payload in ancillary:
            descriptors.frombytes(payload)
        return node_pb2.SlabReply.FromString(raw), list(descriptors)


@pytest.fixture
async def connection(tmp_path: Path, sessions: Sessions) -> AsyncIterator[Connection]:
    connection = Connection(tmp_path / "slabs")
    yield connection
    connection.socket.close()


async def test_a_session_ends_with_its_process(
    sessions: Sessions, ended: Ended, process: subprocess.Popen[bytes]
) -> None:
    """The node hears of it first, then who asked to; afterwards the id is nobody's."""
    session = sessions.attach(process.pid, "us", False)
    other = sessions.attach(os.getpid(), "us", False)
    session.on_end += [lambda: ended.events.append("first"), lambda: ended.events.append("second")]
    forgotten = lambda: ended.events.append("forgotten")  # noqa: E731  # it is named to be taken back
    session.on_end.append(forgotten)
    session.forget(forgotten)
    session.forget(forgotten)
    process.kill()
    await eventually(lambda: ended.events)
    assert ended.events == [session, "first", "second"]
    with pytest.raises(SessionLost):
        sessions.get(session.id)
    assert sessions.get(other.id) is other
    assert len(sessions) == 1


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1, 2**40])
async def test_a_process_that_is_not_there(sessions: Sessions, pid: int) -> None:
    """Cannot attach."""
    with pytest.raises(InvalidInput):
        sessions.attach(pid, "us", False)
    assert len(sessions) == 0


@pytest.mark.parametrize("read_only", [False, True])
async def test_slabs_are_handed_over(sessions: Sessions, connection: Connection, read_only: bool) -> None:
    """Two descriptors, the bytes and the words; who only reads gets no writable one."""
    session = sessions.attach(os.getpid(), "us", read_only)
    bound, none = await connection.ask(session.id)
    assert (bound.bound, bound.error, none) == (True, "", [])
    reply, descriptors = await connection.ask(b"", SLAB)  # the connection knows its session now
    assert (reply.slab_id, reply.slab_bytes, reply.slot_bytes) == (SLAB, SLAB_BYTES, SLOT_BYTES)
    assert [os.fstat(fd).st_size for fd in descriptors] == [SLAB_BYTES, SLAB_BYTES // SLOT_BYTES * 8]
    flags = [os.O_ACCMODE & _flags(fd) for fd in descriptors]
    assert flags == [os.O_RDONLY if read_only else os.O_RDWR, os.O_RDONLY]
    for fd in descriptors:
        os.close(fd)


def _flags(fd: int) -> int:
    [line] = [line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line.startswith("flags")]
    return int(line.split()[1], 8)


async def test_what_is_refused_says_why(sessions: Sessions, connection: Connection, tmp_path: Path) -> None:
    """Errors name the slab that was asked for and their class; the connection stays usable."""
    session = sessions.attach(os.getpid(), "us", False)
    reply, _ = await connection.ask(bytes(16))
    assert reply.error.startswith("SessionLost: ")
    await connection.ask(session.id)
    for slab_id, error in ((FOREIGN, "PermissionRefused: "), (99, "KeyError: ")):
        reply, descriptors = await connection.ask(b"", slab_id)
        assert (reply.slab_id, descriptors) == (slab_id, [])
        assert reply.error.startswith(error)
    reply, _ = await connection.send(b"\xff\xff")
    assert reply.error
    reply, descriptors = await connection.ask(b"", SLAB)
    assert reply.error == ""
    for fd in descriptors:
        os.close(fd)


async def test_another_process_cannot_use_a_session(
    sessions: Sessions, connection: Connection, process: subprocess.Popen[bytes]
) -> None:
    """The kernel says who connects: an id that was overheard is of no use."""
    session = sessions.attach(process.pid, "us", False)
    reply, _ = await connection.ask(session.id)
    assert reply.error.startswith("PermissionRefused: ")
    reply, descriptors = await connection.ask(session.id, SLAB)
    assert reply.error.startswith("PermissionRefused: ")
    assert descriptors == []


async def test_hanging_up_ends_the_session(sessions: Sessions, connection: Connection, ended: Ended) -> None:
    """Also of a process that lives on: it detached."""
    session = sessions.attach(os.getpid(), "us", False)
    await connection.ask(session.id)
    connection.socket.close()
    await eventually(lambda: ended.events == [session])


async def test_a_session_that_never_came_for_its_slabs_ends(
    sessions: Sessions, connection: Connection, ended: Ended
) -> None:
    """Its process did not hear that it was attached; one that came stays."""
    unheard, bound = (sessions.attach(os.getpid(), "us", False) for _ in range(2))
    await connection.ask(bound.id)
    sessions.tick(unheard.attached_ns + SECOND_NS)
    assert ended.events == []
    sessions.tick(bound.attached_ns + SECOND_NS + 1)
    assert ended.events == [unheard]


async def test_close_ends_everything(tmp_path: Path, ended: Ended) -> None:
    """Sessions, connections, the socket and its path; no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    memory = DramMemory(hugepages=False)
    sessions = Sessions(memory, TENANTS.__getitem__, ended, bind_ns=SECOND_NS)
    path = tmp_path / "other"
    sessions.listen(path)
    assert path.stat().st_mode & 0o777 == 0o600
    session = sessions.attach(os.getpid(), "us", False)
    connection = Connection(path)
    await connection.ask(session.id)
    sessions.close()
    assert ended.events == [session]
    assert not path.exists()
    assert connection.socket.recv(1) == b""
    connection.socket.close()
    assert len(os.listdir("/proc/self/fd")) == before
