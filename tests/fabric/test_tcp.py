"""The fabric of plain sockets: the contract, and what is its own."""

import asyncio
import errno
import signal
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from kvstore.config import FabricConfig
from kvstore.errors import BufferMismatch, FabricUnavailable, InvalidInput, PeerLost
from kvstore.fabric import tcp, tcp_address, tcp_greeting
from kvstore.fabric.sealed import sealed
from kvstore.fabric.tcp import GREETINGS_MAX, TcpFabric, TcpPeer
from kvstore.fabric.tcp_address import MARK, SECRET_BYTES, TcpAddress, device_ips, this_host
from kvstore.fabric.tcp_streams import Calls
from tests.contracts.fabric import MIB, FabricContract, StartFarSide, ended, exchange, guarded, pattern, unharmed
from tests.fabric.conftest import StartFarProcess
from tests.fabric.counts import held, settled, threads, wakeups
from tests.fabric.dying import end_within_messages
from tests.waiting import eventually

LO = FabricConfig(kind="tcp", device="lo")


class TestTcpContract(FabricContract):
    transport = "sockets"
    foreign_address = b"kvloop" + bytes(16)

    def made(self) -> TcpFabric:
        return TcpFabric(LO)

    @pytest.fixture
    def start_far_side(self, start_far_process: StartFarProcess) -> StartFarSide:
        return partial(start_far_process, "tcp")


@pytest.fixture
async def fabric() -> AsyncIterator[TcpFabric]:
    fabric = TcpFabric(LO)
    yield fabric
    await fabric.close()


@pytest.fixture
async def other() -> AsyncIterator[TcpFabric]:
    fabric = TcpFabric(LO)
    yield fabric
    await fabric.close()


def parts(peer: Any) -> Any:
    """Of a peer or a fabric, what is nobody else's to know."""
    return peer


# ---- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_sender_that_ends_within_a_message(fabric: TcpFabric, death: signal.Signals) -> None:
    """Leaves no receive behind."""
    await end_within_messages(fabric, "tcp", MIB, death)


async def test_nothing_is_left_of_lost_peers(fabric: TcpFabric) -> None:
    """Nor do peers that come and go, also where nobody here has connected to them."""
    for claimed in (True, False) * 3:
        before = await settled()
        other = TcpFabric(LO)
        if claimed:
            await exchange(fabric, other)
        else:
            await other.connect(fabric.address).send(1, bytes(8))
            await eventually(lambda: parts(fabric)._unclaimed)
        await other.close()
        await eventually(lambda: not (parts(fabric)._unclaimed or parts(fabric)._unsettled))
    assert await settled() <= before


async def test_idle_fabric_sleeps() -> None:
    """An idle fabric has no wake-up at all, connected or not."""
    others = threads()
    one, other = TcpFabric(LO), TcpFabric(LO)
    await exchange(one, other)
    own = threads() - others | {threading.get_native_id()}
    before = wakeups(own)
    await asyncio.sleep(0.5)
    assert wakeups(own) - before <= 3
    await one.close()
    await other.close()


async def test_closed_and_connected_over_and_over(fabric: TcpFabric, other: TcpFabric) -> None:
    """Whatever of the former connections comes late, the present ones carry bytes both ways."""
    for turn in range(40):
        ends = fabric.connect(other.address), other.connect(fabric.address)
        if turn % 2:
            await exchange(fabric, other)
        await asyncio.gather(*(peer.close() for peer in ends))
        await exchange(fabric, other, 4096)
        await exchange(other, fabric, 4096)


async def test_a_former_connection_that_comes_late(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is not taken in the place of the present one, and a newer one is."""
    monkeypatch.setattr(tcp, "LONE_S", 60)
    await exchange(fabric, other)
    peer = parts(fabric.connect(other.address))
    present = await eventually(lambda: peer.incoming)
    there = TcpAddress.decoded(fabric.address)
    for former, taken in ((-1, False), (present.number - 1, False), (present.number, True)):
        parts(other)._reached = former
        connection = await other.reach(there)
        await eventually(lambda: not parts(fabric)._greetings)
        assert (peer.incoming is not present) == taken
        if taken:
            await asyncio.wait_for(present.ended.wait(), 5)
        connection.close()


async def test_the_end_of_one_that_never_connected_here(fabric: TcpFabric) -> None:
    """Is noticed at once, by the connection that was made here."""
    other = TcpFabric(LO)
    peer = fabric.connect(other.address)
    received = peer.receive(fabric.next_tag(), np.zeros(8, np.uint8))
    await peer.send(1, bytes(8))
    await eventually(lambda: parts(other)._unclaimed)
    await other.close()
    assert [type(error) for error in await ended(received)] == [PeerLost]


async def test_the_end_of_one_that_had_not_accepted_yet(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side connects and ends that, with the connection from here still unseen: nothing can come any more."""
    monkeypatch.setattr(tcp, "LONE_S", 0.05)
    for listener in parts(other)._listeners:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    peer = fabric.connect(other.address)
    received = peer.receive(fabric.next_tag(), np.zeros(8, np.uint8))
    back = other.connect(fabric.address)
    await back.send(1, bytes(8))
    await eventually(lambda: parts(peer).incoming)
    await back.close()
    assert [type(error) for error in await ended(received)] == [PeerLost]
    assert not peer.alive


async def test_a_connection_that_follows(fabric: TcpFabric, other: TcpFabric) -> None:
    """Keeps the peer, which would have been given up."""
    peer, there = parts(fabric.connect(other.address)), TcpAddress.decoded(fabric.address)
    former = await other.reach(there)
    await eventually(lambda: peer.incoming)
    former.close()
    await eventually(lambda: not peer.incoming)
    assert not peer._lone.cancelled()
    present = await other.reach(there)
    await eventually(lambda: peer.incoming)
    assert peer._lone.cancelled()
    present.close()


async def test_nobody_is_there(fabric: TcpFabric) -> None:
    """A fabric that has gone is not reached, and the operations say so."""
    gone = TcpFabric(LO)
    await gone.close()
    peer = fabric.connect(gone.address)
    (error,) = await ended(peer.send(1, bytes(8)))
    assert isinstance(error, PeerLost)
    assert "is not reached: Connect" in str(error)
    assert fabric.connect(gone.address) is not peer


async def test_a_call_that_fails_holds_up_no_other() -> None:
    """What other threads told the event loop with it is heard."""
    loop, heard, failed = asyncio.get_running_loop(), list[int](), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    calls = Calls(loop)
    for call in (lambda: heard.append(1), lambda: 1 / 0, lambda: heard.append(2)):
        calls.add(call)
    await eventually(lambda: heard == [1, 2])
    assert len(failed) == 1


async def test_without_descriptors(fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is accepted, the event loop does not spin, and later those who wait are heard."""
    tried = 0

    class Exhausted:
        def __init__(self, listener: socket.socket) -> None:
            self.fileno = listener.fileno
            self._listener = listener

        def accept(self) -> Any:
            nonlocal tried
            tried += 1
            if tried <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._listener.accept()

    monkeypatch.setattr(tcp, "EXHAUSTED_S", 0.1)
    for listener in parts(fabric)._listeners:
        asyncio.get_running_loop().add_reader(listener.fileno(), parts(fabric)._accept, Exhausted(listener))
    await exchange(other, fabric)
    assert 3 <= tried <= 6  # of two listeners


@pytest.mark.parametrize("which", ["tcp-send", "tcp-receive"])
async def test_without_threads(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """As where a container may have no more: the peer is lost, and says why; nothing hangs."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == which:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    peers = fabric.connect(other.address), other.connect(fabric.address)
    futures = [peer.receive(1, np.zeros(8, np.uint8)) for peer in peers] + [peer.send(2, bytes(8)) for peer in peers]
    assert PeerLost in {type(error) for error in await asyncio.wait_for(ended(*futures), 3)}
    assert not any(peer.alive for peer in peers)
    await asyncio.wait_for(asyncio.gather(*(peer.close() for peer in peers)), 3)
    monkeypatch.undo()
    await exchange(fabric, other)


async def test_what_cannot_be_made_leaves_nothing() -> None:
    """No descriptor, and nothing that the event loop watches."""
    before = held()
    for _ in range(5):
        with pytest.raises(FabricUnavailable):
            TcpFabric(FabricConfig(kind="tcp", device="nosuch0"))
    assert held() == before


async def test_unclaimed_connections_are_bounded(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest makes room."""
    monkeypatch.setattr(tcp, "UNCLAIMED_MAX", 3)
    others = [TcpFabric(LO) for _ in range(5)]
    for each in others:
        await each.connect(fabric.address).send(1, bytes(8))
        await eventually(lambda each=each: each.address in parts(fabric)._unclaimed)
    assert [*parts(fabric)._unclaimed] == [each.address for each in others[-3:]]
    await exchange(fabric, others[-1])
    for each in others:
        await each.close()


# ---- strangers ---------------------------------------------------------------------------------------------------


def stranger(fabric: TcpFabric) -> socket.socket:
    """A connection of somebody who has only found the port."""
    return socket.create_connection(TcpAddress.decoded(fabric.address).endpoints[0])


async def hung_up(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while await asyncio.get_running_loop().sock_recv(connection, 4096):
            pass  # it may have answered before
    except ConnectionResetError:
        pass
    return True


def greeting(secret: bytes, address: bytes) -> bytes:
    said = tcp_greeting._HEAD.pack(bytes(16), 1, len(address)) + address
    return said + tcp_greeting._mac(secret, b"hello", said)


async def test_who_does_not_know_the_secret_is_refused(
    fabric: TcpFabric, other: TcpFabric, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a stranger says, the connection is closed, no buffer is touched, and others go on."""
    caplog.set_level("DEBUG")
    known, unknown = parts(fabric)._secret, bytes(SECRET_BYTES)
    tag, (target, whole) = fabric.next_tag(), guarded(64)
    received = fabric.connect(other.address).receive(tag, target)
    message = tag.to_bytes(8, "little") + (64).to_bytes(8, "little") + b"x" * 64
    right = greeting(known, other.address)
    for said, why in (
        (greeting(unknown, other.address) + b"\x01" + message, "does not know the secret"),
        (greeting(known, b"no address") + b"\x01" + message, "not the address of a TCP fabric"),
        (right[:-1] + bytes([right[-1] ^ 1]) + b"\x01" + message, "does not know the secret"),
        (right, "ended within the greeting"),
        (right[:30], "ended within the greeting"),
        (b"GET / HTTP/1.1\r\n\r\n" * 9000, "does not know the secret"),
    ):
        caplog.clear()
        with stranger(fabric) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert await asyncio.wait_for(hung_up(connection), 5)
        await eventually(lambda why=why: why in caplog.text)
    assert not whole.any()
    assert await ended(other.connect(fabric.address).send(tag, pattern(64, tag)), received) == [None, None]
    assert unharmed(whole)


async def test_silent_strangers_keep_nobody_out(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the connections that say nothing the oldest are ended, and one that speaks is heard."""
    monkeypatch.setattr(tcp, "GREETING_S", 60)
    silent = [stranger(fabric) for _ in range(GREETINGS_MAX + 8)]
    await eventually(lambda: len(parts(fabric)._greetings) == GREETINGS_MAX)
    assert await asyncio.wait_for(hung_up(silent[0]), 5)
    await exchange(other, fabric)
    assert len(parts(fabric)._greetings) <= GREETINGS_MAX
    for connection in silent:
        connection.close()


async def test_a_silent_stranger_is_ended(fabric: TcpFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time for a greeting."""
    monkeypatch.setattr(tcp, "GREETING_S", 0.05)
    with stranger(fabric) as connection:
        assert await asyncio.wait_for(hung_up(connection), 5)
    await eventually(lambda: not parts(fabric)._greetings)


async def test_close_ends_silent_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not wait for the time that a greeting has."""
    monkeypatch.setattr(tcp, "GREETING_S", 60)
    fabric = TcpFabric(LO)
    with stranger(fabric) as connection:
        await eventually(lambda: parts(fabric)._greetings)
        await asyncio.wait_for(fabric.close(), 5)
        assert await asyncio.wait_for(hung_up(connection), 5)


# ---- addresses ---------------------------------------------------------------------------------------------------


def test_address_round_trip() -> None:
    """All that is said comes back."""
    address = TcpAddress(bytes(SECRET_BYTES), this_host(), (("10.0.0.1", 5), ("fd00::7", 65535)))
    assert TcpAddress.decoded(address.encoded()) == address


@pytest.mark.parametrize("content", [b"x", bytes(24) + b"\0\5\4\1\2\3", bytes(24) + b"\0\5\3\1\2\3", bytes(25)])
def test_hostile_addresses(content: bytes) -> None:
    """A digest is easily made: what is inside is looked at as well."""
    with pytest.raises(InvalidInput, match="TCP fabric"):
        TcpAddress.decoded(sealed(MARK, content))


def test_loopback_is_for_the_same_host() -> None:
    """What another host calls 127.0.0.1 is not ours; near addresses come before far ones."""
    endpoints = (("198.51.100.9", 1), ("127.0.0.1", 2), ("127.0.0.9", 3))
    here = TcpAddress(bytes(16), this_host(), endpoints).nearest_first(())
    assert [port for _, port in here][:2] == [2, 3]
    elsewhere = TcpAddress(bytes(16), bytes(8), endpoints).nearest_first(())
    assert {port for _, port in elsewhere} <= {1}


def test_addresses_that_both_hosts_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bridge to containers: from here they lead here."""
    monkeypatch.setattr(tcp_address, "_nearness", lambda ip: 0)
    own, endpoints = ("172.17.0.1", "10.0.0.1"), (("172.17.0.1", 1), ("10.0.0.2", 2))
    assert TcpAddress(bytes(16), bytes(8), endpoints).nearest_first(own) == [("10.0.0.2", 2)]
    assert TcpAddress(bytes(16), this_host(), endpoints).nearest_first(own) == [*endpoints]


def test_a_host_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries what it has."""
    made = socket.socket

    def without(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, kind)

    monkeypatch.setattr(socket, "socket", without)
    there = TcpAddress(bytes(16), this_host(), (("::1", 1), ("127.0.0.1", 2)))
    assert there.nearest_first(()) == [("127.0.0.1", 2)]


async def test_without_a_route(fabric: TcpFabric) -> None:
    """A fabric that has only loopback addresses is not reached from another host."""
    there = TcpAddress(bytes(16), bytes(8), (("127.0.0.1", 1),))
    with pytest.raises(OSError, match="no address that has a route"):
        await fabric.reach(there)


def test_devices() -> None:
    """A device's addresses; one that is not there is named, with those that are."""
    assert "127.0.0.1" in device_ips("lo")
    assert set(device_ips("lo")) <= set(device_ips(""))
    with pytest.raises(FabricUnavailable, match=r"no device nosuch0.* there are .*lo"):
        device_ips("lo,nosuch0")


@pytest.mark.parametrize("first", ["refuses", "is silent", "talks", "is another fabric"])
async def test_another_address_is_tried(
    fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Where at the nearest one nobody is, or somebody else: within a load's patience, and nothing is left of it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if first == "talks":
            writer.write(bytes(64))
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    own, third = TcpAddress.decoded(other.address), TcpFabric(LO)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        wrong = server.sockets[0].getsockname()[:2]
        if first == "refuses":
            server.close()
        elif first == "is another fabric":
            wrong = TcpAddress.decoded(third.address).endpoints[0]
        monkeypatch.setattr(tcp_address, "_nearness", lambda ip: 0)
        began, tasks = time.monotonic(), len(asyncio.all_tasks())
        connection = await fabric.reach(TcpAddress(own.secret, own.host, (wrong, *own.endpoints)))
        assert time.monotonic() - began < 1  # of 5 that an address has
        assert connection.getpeername()[:2] in own.endpoints
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks, tcp.CONNECT_S / 2)
        connection.close()
    await third.close()


async def test_one_connection_of_those_that_were_tried(fabric: TcpFabric, other: TcpFabric) -> None:
    """Is kept; the other side takes none of the others."""
    own = TcpAddress.decoded(other.address)
    before = held()[1]
    connection = await fabric.reach(TcpAddress(own.secret, own.host, own.endpoints * 4))
    await eventually(lambda: parts(other)._unclaimed and not parts(other)._greetings)
    await eventually(lambda: held()[1] == before + 2)
    connection.close()


async def test_connections_leave_by_the_device(fabric: TcpFabric) -> None:
    """From that of its addresses which is nearest; without one of the kind the address is not tried."""
    named = parts(fabric)
    named._ips = ["10.1.0.1", "127.0.0.1"]
    with socket.socket() as connection:
        named._leave_by_device(connection, "127.0.0.9")
        assert connection.getsockname()[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET6) as connection, pytest.raises(OSError, match="no address of the kind of ::1"):
        named._leave_by_device(connection, "::1")


# ---- buffers -----------------------------------------------------------------------------------------------------


class OnDevice:
    __cuda_array_interface__: ClassVar[dict[str, object]] = {}


async def test_device_memory_is_refused(fabric: TcpFabric, other: TcpFabric) -> None:
    """Sockets reach host memory only, and the error says what does."""
    peer = fabric.connect(other.address)
    for operation in (peer.send, peer.receive):
        with pytest.raises(BufferMismatch, match="device memory needs UCX"):
            operation(1, OnDevice())


async def test_a_sent_buffer_is_given_back(fabric: TcpFabric, other: TcpFabric) -> None:
    """Nobody holds it once the send has ended, also when no other follows."""
    source = np.ones(MIB, np.uint8)
    alive = weakref.ref(source)
    await fabric.connect(other.address).send(1, source)
    del source
    await eventually(lambda: alive() is None)


async def test_too_long_a_message_ends_its_receive_alone(fabric: TcpFabric, other: TcpFabric) -> None:
    """What follows it over the same connection arrives."""
    peer: TcpPeer = fabric.connect(other.address)
    tag, after = fabric.next_tag(), fabric.next_tag()
    short, target = peer.receive(tag, np.zeros(8, np.uint8)), np.zeros(MIB, np.uint8)
    received = peer.receive(after, target)
    there = other.connect(fabric.address)
    there.send(tag, pattern(3 * MIB + 5, tag))
    there.send(after, pattern(MIB, after))
    assert [type(error) for error in await ended(short, received)] == [PeerLost, type(None)]
    assert np.array_equal(target, pattern(MIB, after))
    assert peer.alive


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"cuda": True}, {"service_level": "3"}])
async def test_what_needs_ucx_is_refused(values: dict[str, Any]) -> None:
    """Rather than ignored."""
    with pytest.raises(FabricUnavailable, match="both need UCX"):
        TcpFabric(replace(LO, **values))


async def test_traffic_class(other: TcpFabric) -> None:
    """Is that of what goes out, over IPv4 and IPv6."""
    fabric = TcpFabric(replace(LO, traffic_class="104"))
    for ip in device_ips("lo"):
        with parts(fabric)._socket(ip) as connection:
            six = ":" in ip
            level = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)
            assert connection.getsockopt(*level) == 104
    await exchange(fabric, other)
    await fabric.close()
