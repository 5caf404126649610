"""The fabric of plain sockets: the contract, and what is its own."""

import asyncio
import errno
import signal
import socket
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from kvstore.config import FabricConfig
from kvstore.errors import BufferMismatch, FabricUnavailable, InvalidInput, PeerLost
from kvstore.fabric import tcp, tcp_address
from kvstore.fabric.sealed import sealed
from kvstore.fabric.tcp import GREETINGS_MAX, TcpFabric, TcpPeer
from kvstore.fabric.tcp_address import MARK, SECRET_BYTES, TcpAddress, device_ips, this_host
from kvstore.fabric.tcp_streams import Calls
from tests.contracts.fabric import MIB, FabricContract, StartFarSide, ended, guarded, pattern, unharmed
from tests.fabric.conftest import StartFarProcess, exchange
from tests.fabric.counts import resident_bytes, settled, threads, wakeups
from tests.fabric.dying import end_within_messages
from tests.waiting import eventually

LO = FabricConfig(kind="tcp", device="lo")


class TestTcpContract(FabricContract):
    transport = "sockets"
    foreign_address = b"kvloop" + bytes(16)

    @pytest.fixture
    async def here(self) -> AsyncIterator[TcpFabric]:
        fabric = TcpFabric(LO)
        yield fabric
        await fabric.close()

    @pytest.fixture
    async def there(self) -> AsyncIterator[TcpFabric]:
        fabric = TcpFabric(LO)
        yield fabric
        await fabric.close()

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


async def open_and_close() -> None:
    one, other = TcpFabric(LO), TcpFabric(LO)
    await exchange(one, other)
    one.connect(other.address).receive(one.next_tag(), np.zeros(MIB, np.uint8))
    await one.close()
    await other.close()


async def test_nothing_is_left_after_close() -> None:
    """Fabrics opened, used and closed leave no thread, descriptor or memory behind."""
    for _ in range(3):
        await open_and_close()
    before, bytes_before = await settled(), resident_bytes()
    for _ in range(10):
        await open_and_close()
    assert await settled() == before
    assert resident_bytes() - bytes_before < 16 * MIB


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


async def test_a_former_connection_that_comes_late(fabric: TcpFabric, other: TcpFabric) -> None:
    """Is not taken in the place of the present one, and a newer one is."""
    await exchange(fabric, other)
    peer = parts(fabric.connect(other.address))
    present = await eventually(lambda: peer.incoming)
    there = TcpAddress.decoded(fabric.address)
    for former, taken in ((-1, False), (present.number, True)):
        parts(other)._greeted_count = former
        connection = await other.greet(there)
        await eventually(lambda: not parts(fabric)._greetings)
        assert (peer.incoming is not present) == taken
        if taken:
            await asyncio.wait_for(present.ended.wait(), 0.5)
        connection.close()


async def test_the_end_of_one_that_never_connected_here(fabric: TcpFabric) -> None:
    """Is noticed at once, by the connection that was made here."""
    other = TcpFabric(LO)
    peer = fabric.connect(other.address)
    received = peer.receive(fabric.next_tag(), np.zeros(8, np.uint8))
    await peer.send(1, bytes(8))
    await eventually(lambda: parts(other)._unclaimed)
    await other.close()
    assert [type(error) for error in await asyncio.wait_for(ended(received), 1)] == [PeerLost]


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
    assert [type(error) for error in await asyncio.wait_for(ended(received), 2)] == [PeerLost]
    assert not peer.alive


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
    assert tried == 3


# ---- strangers ---------------------------------------------------------------------------------------------------


def stranger(fabric: TcpFabric) -> socket.socket:
    """A connection of somebody who has only found the port."""
    return socket.create_connection(TcpAddress.decoded(fabric.address).endpoints[0])


async def hung_up(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return await asyncio.get_running_loop().sock_recv(connection, 1) == b""
    except ConnectionResetError:
        return True


async def test_who_does_not_know_the_secret_is_refused(
    fabric: TcpFabric, other: TcpFabric, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a stranger says, the connection is closed, no buffer is touched, and others go on."""
    greeting = tcp._GREETING.pack(bytes(SECRET_BYTES), 1, 8)
    right = tcp._GREETING.pack(parts(fabric)._secret, 1, 8)
    tag, (target, whole) = fabric.next_tag(), guarded(64)
    received = fabric.connect(other.address).receive(tag, target)
    message = tag.to_bytes(8, "little") + (64).to_bytes(8, "little") + b"x" * 64
    for said in (greeting + bytes(8), right + bytes(8), right[:3], greeting + message, b"GET / HTTP/1.1\r\n\r\n" * 9):
        with stranger(fabric) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert await asyncio.wait_for(hung_up(connection), 5)
    assert "does not know the secret" in caplog.text
    assert "not the address of a TCP fabric" in caplog.text
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


async def test_close_ends_silent_strangers() -> None:
    """They do not wait for the time that a greeting has."""
    fabric = TcpFabric(LO)
    with stranger(fabric) as connection:
        await eventually(lambda: parts(fabric)._greetings)
        await asyncio.wait_for(fabric.close(), 1)
        assert await asyncio.wait_for(hung_up(connection), 1)


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
    here = TcpAddress(bytes(16), this_host(), endpoints).nearest_first()
    assert [port for _, port in here][:2] == [2, 3]
    elsewhere = TcpAddress(bytes(16), bytes(8), endpoints).nearest_first()
    assert {port for _, port in elsewhere} <= {1}


def test_addresses_that_both_hosts_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bridge to containers: from here they lead here."""
    monkeypatch.setattr(tcp_address, "_nearness", lambda ip: 0)
    monkeypatch.setattr(tcp_address, "device_ips", lambda devices: ["172.17.0.1", "10.0.0.1"])
    endpoints = (("172.17.0.1", 1), ("10.0.0.2", 2))
    assert TcpAddress(bytes(16), bytes(8), endpoints).nearest_first() == [("10.0.0.2", 2)]
    assert TcpAddress(bytes(16), this_host(), endpoints).nearest_first() == [*endpoints]


async def test_without_a_route(fabric: TcpFabric) -> None:
    """A fabric that has only loopback addresses is not reached from another host."""
    there = TcpAddress(bytes(16), bytes(8), (("127.0.0.1", 1),))
    with pytest.raises(OSError, match="no address that has a route"):
        await fabric.greet(there)


def test_devices() -> None:
    """A device's addresses; one that is not there is named, with those that are."""
    assert "127.0.0.1" in device_ips("lo")
    assert set(device_ips("lo")) <= set(device_ips(""))
    with pytest.raises(FabricUnavailable, match=r"no device nosuch0.* there are .*lo"):
        device_ips("lo,nosuch0")


async def test_another_address_is_tried(fabric: TcpFabric, other: TcpFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first one does not answer."""
    own = TcpAddress.decoded(other.address)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[:2]
    both = TcpAddress(own.secret, own.host, (dead, *own.endpoints))
    monkeypatch.setattr(tcp_address, "_nearness", lambda ip: 0)
    connection = await fabric.greet(both)
    assert connection.getpeername()[:2] in own.endpoints
    connection.close()


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
