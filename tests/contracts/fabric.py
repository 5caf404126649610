"""What every fabric must do (kvstore/fabric/base.py), in one process and against a far side that can die and stop."""

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.errors import BufferMismatch, Closed, InvalidInput, PeerLost
from kvstore.fabric.base import Fabric, Peer
from tests.fabric.counts import resident_bytes, settled
from tests.waiting import eventually

DEADLINE_S = 10.0
MIB = 1024 * 1024
GUARD = 64
Bytes = npt.NDArray[np.uint8]


class FarSide(Protocol):
    """A fabric whose process does what the tests say. `stop` and `kill` mean SIGSTOP and SIGKILL."""

    address: bytes

    async def connect(self, address: bytes) -> None: ...

    async def send(self, tag: int, size: int) -> None:
        """Posts a send of `pattern(size, tag)`."""

    async def receive(self, tag: int, size: int) -> None:
        """Posts a receive."""

    async def stop_within(self, buffer: Bytes) -> None:
        """Stops while the first posted message is on its way into `buffer`, which was zeros."""

    def stop(self) -> None: ...

    def resume(self) -> None: ...

    def kill(self) -> None: ...

    async def close(self) -> None: ...


StartFarSide = Callable[[], Coroutine[Any, Any, FarSide]]


def pattern(size: int, seed: int) -> Bytes:
    """Bytes without a zero that follow from the seed."""
    return (np.resize(np.random.default_rng(seed).integers(1, 255, min(size, MIB), np.uint8), size)).view(np.uint8)


def guarded(size: int) -> tuple[Bytes, Bytes]:
    """Zeros to receive into, and the whole array around them."""
    whole = np.zeros(size + 2 * GUARD, np.uint8)
    return whole[GUARD:-GUARD], whole


def unharmed(whole: Bytes) -> bool:
    return not whole[:GUARD].any() and not whole[-GUARD:].any()


async def ended(*futures: "asyncio.Future[None]") -> list[BaseException | None]:
    """How the futures ended; all of them must within the deadline."""
    _, pending = await asyncio.wait(futures, timeout=DEADLINE_S)
    assert not pending, f"{len(pending)} of {len(futures)} operations did not end"
    return [future.exception() for future in futures]


async def exchange(one: Fabric, other: Fabric, size: int = MIB) -> None:
    """A message between two fabrics of this process."""
    tag, target = other.next_tag(), np.zeros(size, np.uint8)
    futures = other.connect(one.address).receive(tag, target), one.connect(other.address).send(tag, pattern(size, tag))
    assert await ended(*futures) == [None, None]
    assert np.array_equal(target, pattern(size, tag))


class FabricContract:
    """`made`: an open fabric. Fixture `start_far_side`: one elsewhere, of the same kind."""

    transport: str
    foreign_address: bytes

    def made(self) -> Fabric:
        raise NotImplementedError

    @pytest.fixture
    async def here(self) -> AsyncIterator[Fabric]:
        fabric = self.made()
        yield fabric
        await fabric.close()

    @pytest.fixture
    async def there(self) -> AsyncIterator[Fabric]:
        fabric = self.made()
        yield fabric
        await fabric.close()

    @pytest.fixture
    async def peers(self, here: Fabric, there: Fabric) -> tuple[Peer, Peer]:
        """(towards there, towards here)"""
        return here.connect(there.address), there.connect(here.address)

    # ---- bytes ----

    @pytest.mark.parametrize("size", [1, 4097, 256 * 1024 + 3, 4 * MIB, 20 * MIB])
    async def test_bytes_arrive(self, there: Fabric, peers: tuple[Peer, Peer], size: int) -> None:
        """Every byte arrives, and none beside the buffer."""
        target, whole = guarded(size)
        tag = there.next_tag()
        received = peers[1].receive(tag, target)
        sent = peers[0].send(tag, pattern(size, tag))
        assert await ended(received, sent) == [None, None]
        assert np.array_equal(target, pattern(size, tag))
        assert unharmed(whole)

    async def test_both_directions_at_once(self, here: Fabric, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """Many messages in flight each way do not mix."""
        size, count = 128 * 1024, 32
        futures, expected = [], []
        for sender, receiver, fabric in ((*peers, there), (*reversed(peers), here)):
            for _ in range(count):
                tag = fabric.next_tag()
                target = np.zeros(size, np.uint8)
                futures += [receiver.receive(tag, target), sender.send(tag, pattern(size, tag))]
                expected.append((target, tag))
        assert [*filter(None, await ended(*futures))] == []
        assert all(np.array_equal(target, pattern(size, tag)) for target, tag in expected)

    async def test_order_of_tags_is_free(self, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """Messages find their receives by tag, in whatever order they are sent."""
        size = 300_000
        tags = [there.next_tag() for _ in range(8)]
        targets = [np.zeros(size, np.uint8) for _ in tags]
        received = [peers[1].receive(tag, target) for tag, target in zip(tags, targets, strict=True)]
        sent = [peers[0].send(tag, pattern(size, tag)) for tag in reversed(tags)]
        assert [*filter(None, await ended(*received, *sent))] == []
        assert all(np.array_equal(target, pattern(size, tag)) for tag, target in zip(tags, targets, strict=True))

    async def test_unwanted_message_writes_nothing(self, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """A message whose tag nobody posted touches no buffer, and does not hinder the others."""
        size = 2 * MIB
        wanted, unwanted = there.next_tag(), there.next_tag()
        target, whole = guarded(size)
        received = peers[1].receive(wanted, target)
        peers[0].send(unwanted, pattern(size, unwanted))
        late = there.next_tag()
        late_target = np.zeros(size, np.uint8)
        assert await ended(peers[1].receive(late, late_target), peers[0].send(late, pattern(size, late))) == [None] * 2
        assert not received.done()
        assert not whole.any()
        assert await ended(peers[0].send(wanted, pattern(size, wanted)), received) == [None, None]

    async def test_too_long_message_is_an_error(self, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """A message longer than its buffer fails the receive and writes nothing past the end."""
        tag = there.next_tag()
        target, whole = guarded(MIB)
        received = peers[1].receive(tag, target)
        peers[0].send(tag, pattern(2 * MIB, tag))
        assert isinstance((await ended(received))[0], PeerLost)
        assert unharmed(whole)

    # ---- calls ----

    async def test_tags_are_unique(self, here: Fabric) -> None:
        """Tags fit in 64 bits, and none comes twice."""
        tags = [here.next_tag() for _ in range(10_000)]
        assert len(set(tags)) == len(tags)
        assert min(tags) >= 0
        assert max(tags) < 2**64

    async def test_connect_twice_is_one_peer(self, here: Fabric, there: Fabric) -> None:
        """A live connection is shared; a closed one is not given again."""
        peer = here.connect(there.address)
        assert here.connect(there.address) is peer
        await peer.close()
        assert here.connect(there.address) is not peer

    async def test_foreign_addresses_are_refused(self, here: Fabric, there: Fabric) -> None:
        """What is no address of this kind of fabric raises InvalidInput, and harms nothing."""
        cut = there.address[:-1]
        for address in (b"", b"x", bytes(200), cut, there.address + b"x", self.foreign_address):
            with pytest.raises(InvalidInput):
                here.connect(address)

    async def test_unfit_buffers_are_refused(self, here: Fabric, there: Fabric) -> None:
        """Empty, scattered and read-only buffers raise before anything is posted."""
        peer = here.connect(there.address)
        scattered = np.zeros((8, 8), np.uint8)[:, :4]
        for buffer in (b"", scattered, 5):
            with pytest.raises(BufferMismatch):
                peer.send(here.next_tag(), buffer)
        for buffer in (bytearray(), scattered, bytes(8), None):
            with pytest.raises(BufferMismatch):
                peer.receive(here.next_tag(), buffer)
        assert peer.pending == 0

    async def test_transport_is_named(self, here: Fabric, peers: tuple[Peer, Peer]) -> None:
        """The fabric says what carries the bytes."""
        assert here.transport == self.transport

    # ---- ends ----

    async def test_cancelled_waiter_leaves_the_operation(self, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """After a cancel the operation goes on, counts as pending, and holds its buffer."""
        tag = there.next_tag()
        target = np.zeros(MIB, np.uint8)
        alive = weakref.ref(target)

        async def wait(buffer: Bytes) -> None:
            await peers[1].receive(tag, buffer)

        waiter = asyncio.create_task(wait(target))
        await asyncio.sleep(0)
        waiter.cancel()
        assert isinstance((await asyncio.gather(waiter, return_exceptions=True))[0], asyncio.CancelledError)
        del target, waiter
        gc.collect()
        assert peers[1].pending == 1
        held = alive()
        assert held is not None
        assert await ended(peers[0].send(tag, pattern(MIB, tag))) == [None]
        await eventually(lambda: peers[1].pending == 0)
        assert np.array_equal(held, pattern(MIB, tag))
        del held
        gc.collect()
        assert alive() is None

    async def test_close_settles_everything(self, here: Fabric, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """Closing ends what is pending with Closed, and what is posted later."""
        lost: list[str] = []
        peers[0].on_lost(lambda: lost.append("lost"))
        buffers = [np.zeros(MIB, np.uint8) for _ in range(4)]
        futures = [peers[0].receive(here.next_tag(), buffer) for buffer in buffers[:2]]
        futures += [peers[0].send(there.next_tag(), buffer) for buffer in buffers[2:]]
        begun = time.monotonic()
        await peers[0].close()
        assert time.monotonic() - begun < 1.0
        assert all(future.done() for future in futures)
        assert [type(error) for error in await ended(*futures)] == [Closed] * 4
        assert (peers[0].alive, peers[0].pending) == (False, 0)
        late = [peers[0].send(there.next_tag(), buffers[2]), peers[0].receive(here.next_tag(), buffers[0])]
        assert [type(error) for error in await ended(*late)] == [Closed] * 2
        await peers[0].close()
        assert lost == []

    async def test_close_is_noticed_there(self, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """Once the two have met, the other side's peer is lost, with what is pending on it."""
        tag, target = there.next_tag(), np.zeros(1, np.uint8)
        assert await ended(peers[1].receive(tag, target), peers[0].send(tag, pattern(1, tag))) == [None, None]
        pending = peers[1].receive(there.next_tag(), np.zeros(MIB, np.uint8))
        await peers[0].close()
        assert [type(error) for error in await ended(pending)] == [PeerLost]
        assert not peers[1].alive

    async def test_connects_again_after_close(self, here: Fabric, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """When both sides have closed, a new connection carries bytes both ways."""
        await asyncio.gather(*(peer.close() for peer in peers))
        again = here.connect(there.address), there.connect(here.address)
        for sender, receiver, fabric in ((*again, there), (*reversed(again), here)):
            tag, target = fabric.next_tag(), np.zeros(2 * MIB, np.uint8)
            futures = receiver.receive(tag, target), sender.send(tag, pattern(2 * MIB, tag))
            assert await ended(*futures) == [None, None]

    async def test_closed_fabric(self, here: Fabric, there: Fabric, peers: tuple[Peer, Peer]) -> None:
        """A closed fabric has ended all its operations and connects no more."""
        futures = [peers[0].receive(here.next_tag(), np.zeros(MIB, np.uint8)) for _ in range(3)]
        await here.close()
        assert [type(error) for error in await ended(*futures)] == [Closed] * 3
        with pytest.raises(Closed):
            here.connect(there.address)
        await here.close()

    async def test_nothing_is_left_after_close(self) -> None:
        """Twenty fabrics opened, used and closed leave no thread, descriptor or memory behind."""
        for _ in range(3):
            await self._open_and_close()
        before, bytes_before = await settled(), resident_bytes()
        for _ in range(10):
            await self._open_and_close()
        assert await settled() == before
        assert resident_bytes() - bytes_before < 16 * MIB

    async def _open_and_close(self) -> None:
        one, other = self.made(), self.made()
        await exchange(one, other)
        one.connect(other.address).receive(one.next_tag(), np.zeros(MIB, np.uint8))
        await one.close()
        await other.close()

    # ---- the far side dies or stops ----

    async def test_killed_peer_is_lost(self, here: Fabric, start_far_side: StartFarSide) -> None:
        """All operations of a killed peer end with PeerLost within 100 ms, and it is told once."""
        far = await start_far_side()
        peer = here.connect(far.address)
        await far.connect(here.address)
        await self.exchange(here, peer, far)
        lost: list[str] = []
        peer.on_lost(lambda: lost.append("lost"))
        futures = [peer.receive(here.next_tag(), np.zeros(4 * MIB, np.uint8)) for _ in range(8)]
        far.stop()  # it reads no more: what is longer than the kernel holds for it stays under way
        futures += [peer.send(here.next_tag(), np.ones(64 * MIB, np.uint8)) for _ in range(2)]
        begun = time.monotonic()
        far.kill()
        assert [type(error) for error in await ended(*futures)] == [PeerLost] * 10
        assert time.monotonic() - begun < 0.1
        await eventually(lambda: lost)
        await eventually(lambda: peer.pending == 0)
        assert (lost, peer.alive) == (["lost"], False)
        peer.on_lost(lambda: lost.append("late"))
        await eventually(lambda: len(lost) == 2)

    async def test_send_to_dead_peer_fails(self, here: Fabric, start_far_side: StartFarSide) -> None:
        """An operation towards a dead process ends with PeerLost, on the old connection and on a new one."""
        far = await start_far_side()
        peer = here.connect(far.address)
        await far.connect(here.address)
        await self.exchange(here, peer, far)
        far.kill()
        await eventually(lambda: not peer.alive)
        again = here.connect(far.address)
        assert again is not peer
        futures = [each.send(here.next_tag(), np.ones(4 * MIB, np.uint8)) for each in (peer, again)]
        assert [type(error) for error in await ended(*futures)] == [PeerLost, PeerLost]

    async def test_restarted_peer(self, here: Fabric, start_far_side: StartFarSide) -> None:
        """After a death the next process is reached under its new address."""
        for _ in range(2):
            far = await start_far_side()
            peer = here.connect(far.address)
            await far.connect(here.address)
            await self.exchange(here, peer, far)
            far.kill()
            await eventually(lambda peer=peer: not peer.alive)

    async def test_close_with_stopped_peer(self, here: Fabric, start_far_side: StartFarSide) -> None:
        """Closing gives the buffers back within 1 s; no byte comes when the peer goes on."""
        far = await start_far_side()
        peer = here.connect(far.address)
        await far.connect(here.address)
        size = 256 * MIB
        buffers = [np.zeros(size, np.uint8), np.zeros(MIB, np.uint8)]
        futures = [peer.receive(tag := here.next_tag(), buffers[0]), peer.receive(here.next_tag(), buffers[1])]
        await far.send(tag, size)
        await far.stop_within(buffers[0])
        futures.append(peer.send(here.next_tag(), np.ones(64 * MIB, np.uint8)))
        begun = time.monotonic()
        await peer.close()
        assert time.monotonic() - begun < 1.0
        assert [type(error) for error in await ended(*futures)] == [Closed] * 3
        for buffer in buffers:
            buffer[:] = 0
        far.resume()
        await far.connect(here.address)
        await self.exchange(here, here.connect(far.address), far)
        assert not any(buffer.any() for buffer in buffers)

    async def exchange(self, here: Fabric, peer: Peer, far: FarSide) -> None:
        """A small message each way: the connection stands."""
        tag, target = here.next_tag(), np.zeros(4096, np.uint8)
        received = peer.receive(tag, target)
        await far.send(tag, target.size)
        assert await ended(received) == [None]
        assert np.array_equal(target, pattern(target.size, tag))
        tag = here.next_tag()
        await far.receive(tag, target.size)
        assert await ended(peer.send(tag, target)) == [None]
