"""The loopback fabric: the contract, and each fault switch."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from kvstore.errors import BufferMismatch, PeerLost
from kvstore.fabric.base import Peer
from kvstore.fabric.faults import ALWAYS
from kvstore.fabric.loopback import LoopbackFabric
from tests.contracts.fabric import DEADLINE_S, Bytes, FabricContract, StartFarSide, ended, pattern


class LoopbackFarSide:
    """A fabric of this process that stands for another one."""

    def __init__(self) -> None:
        self.fabric = LoopbackFabric()
        self.address = self.fabric.address
        self._peer: Peer | None = None

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    async def connect(self, address: bytes) -> None:
        self._peer = self.fabric.connect(address)

    async def send(self, tag: int, size: int) -> None:
        self.peer.send(tag, pattern(size, tag))

    async def receive(self, tag: int, size: int) -> None:
        self.peer.receive(tag, bytearray(size))

    async def stop_within(self, buffer: Bytes) -> None:
        self.stop()

    def stop(self) -> None:
        self.fabric.faults.stalled = True

    def resume(self) -> None:
        self.fabric.faults.stalled = False

    def kill(self) -> None:
        self.fabric.die()

    async def close(self) -> None:
        await self.fabric.close()


class TestLoopbackContract(FabricContract):
    transport = "loopback"
    foreign_address = b"kvucx1" + bytes(100)

    def made(self) -> LoopbackFabric:
        return LoopbackFabric()

    @pytest.fixture
    async def start_far_side(self) -> AsyncIterator[StartFarSide]:
        started: list[LoopbackFarSide] = []

        async def start() -> LoopbackFarSide:
            started.append(LoopbackFarSide())
            return started[-1]

        yield start
        for far in started:
            await far.close()


class Line:
    """A sender and a receiver, one connection each way."""

    def __init__(self) -> None:
        self.sender, self.receiver = LoopbackFabric(), LoopbackFabric()
        self.forth = self.sender.connect(self.receiver.address)
        self.back = self.receiver.connect(self.sender.address)
        self.faults = self.sender.faults

    def message(self, size: int = 1000) -> tuple["asyncio.Future[None]", "asyncio.Future[None]", Bytes, int]:
        """(sent, received, target, tag) of a message that was just posted"""
        tag, target = self.receiver.next_tag(), np.zeros(size, np.uint8)
        received = self.back.receive(tag, target)
        return self.forth.send(tag, pattern(size, tag)), received, target, tag


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    await line.sender.close()
    await line.receiver.close()


async def test_drop(line: Line) -> None:
    """A dropped message ends well for its sender only; the next one arrives."""
    line.faults.drop = 1
    sent, received, target, _ = line.message()
    _, following, _, _ = line.message()
    assert await ended(sent, following) == [None, None]
    assert not received.done()
    assert not target.any()


async def test_drop_always(line: Line) -> None:
    """A one-way drop lasts until it is switched off; the other way is open."""
    line.faults.drop = ALWAYS
    dropped = [line.message() for _ in range(5)]
    await ended(*(sent for sent, *_ in dropped))
    tag, target = line.sender.next_tag(), np.zeros(10, np.uint8)
    assert await ended(line.forth.receive(tag, target), line.back.send(tag, pattern(10, tag))) == [None, None]
    line.faults.drop = 0
    _, received, _, _ = line.message()
    assert await ended(received) == [None]
    assert not any(received.done() for _, received, _, _ in dropped)


async def test_corrupt(line: Line) -> None:
    """A corrupt message arrives, with one wrong byte; the source stays whole."""
    line.faults.corrupt = 1
    sent, received, target, tag = line.message()
    assert await ended(sent, received) == [None, None]
    assert np.count_nonzero(target != pattern(1000, tag)) == 1
    _, received, target, tag = line.message()
    assert await ended(received) == [None]
    assert np.array_equal(target, pattern(1000, tag))


async def test_delay(line: Line) -> None:
    """A message takes the time that is set, and those sent without it overtake."""
    line.faults.delay_s = 0.05
    begun = asyncio.get_running_loop().time()
    _, slow, _, _ = line.message()
    line.faults.delay_s = 0.0
    _, fast, _, _ = line.message()
    assert await ended(fast) == [None]
    assert not slow.done()
    assert await ended(slow) == [None]
    assert asyncio.get_running_loop().time() - begun >= 0.05


async def test_dies_at_an_operation(line: Line) -> None:
    """At the n-th operation everything from and to the fabric is lost, and it cannot be reached again."""
    lost = asyncio.Event()
    line.back.on_lost(lost.set)
    line.faults.die_at = 2
    first = line.message()
    second = line.message()
    assert [type(error) for error in await ended(first[0], first[1], second[0], second[1])] == [PeerLost] * 4
    await asyncio.wait_for(lost.wait(), DEADLINE_S)
    again = line.receiver.connect(line.sender.address)
    assert [type(error) for error in await ended(again.send(1, b"x"))] == [PeerLost]


@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_stall(line: Line, side: str) -> None:
    """While either end is stalled nothing moves and nothing ends; afterwards all of it arrives."""
    faults = getattr(line, side).faults
    faults.stalled = True
    sent, received, target, tag = line.message()
    other = LoopbackFabric()
    passing = other.connect(line.sender.address)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not sent.done()
    assert not received.done()
    faults.stalled = False
    assert await ended(sent, received) == [None, None]
    assert np.array_equal(target, pattern(1000, tag))
    assert passing.alive
    await other.close()


async def test_message_before_its_receive(line: Line) -> None:
    """A message waits for its receive; when its sender gives up, the receive stays."""
    tag, target = line.receiver.next_tag(), np.zeros(10, np.uint8)
    early = line.forth.send(tag, pattern(10, tag))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not early.done()
    assert await ended(line.back.receive(tag, target), early) == [None, None]
    withdrawn = line.forth.send(line.receiver.next_tag(), pattern(10, 0))
    await line.forth.close()
    assert withdrawn.done()


async def test_device_memory_is_refused(line: Line) -> None:
    """Loopback copies host memory only, and says so."""

    class Device:
        __cuda_array_interface__ = None

    with pytest.raises(BufferMismatch, match="host memory"):
        line.forth.send(1, Device())
