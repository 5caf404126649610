"""Contestant: the fabric, with and without checksums."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from kvbench.pair import Move, Point, pair
from kvstore.blocks.layout import GRANULE_BYTES_MAX
from kvstore.config import FabricConfig
from kvstore.errors import ChecksumMismatch
from kvstore.fabric import make_fabric
from kvstore.fabric.base import Fabric, Peer

_PROBE_BYTES = 1024 * 1024
_CREDIT = b"c"

Bytes = npt.NDArray[np.uint8]
Arrived = Callable[[Bytes], None]


@contextmanager
def fabrics(config: FabricConfig) -> Iterator[tuple[Move, Move]]:
    """Two processes with a fabric each. Yields (without checksums, with checksums)."""
    with pair(_receive, _send, config) as order:
        yield lambda point: order(point, False), lambda point: order(point, True)


def transport(config: FabricConfig) -> str:
    """What was chosen between two processes of this machine, once a message has gone over it."""
    with pair(_receive, _send, config) as order:
        order(Point(_PROBE_BYTES, 1, _PROBE_BYTES), False)
        return str(order(None, False))


def _receive(orders: Connection, link: Connection, config: FabricConfig) -> None:
    asyncio.run(_receiver(orders, link, config))


def _send(link: Connection, config: FabricConfig) -> None:
    asyncio.run(_sender(link, config))


async def _receiver(orders: Connection, link: Connection, config: FabricConfig) -> None:
    fabric, peer = await _joined(link, config)
    targets = _Buffers()
    while (order := await _next(orders)) is not None:
        point, checked = order
        if point is None:
            orders.send(fabric.transport)
            continue
        tags = [fabric.next_tag() for _ in range(point.count)]
        buffers = targets.of(point)
        arrived = _verify(_expected(point.size_bytes)) if checked else _believe
        link.send((point, tags))
        await _next(link)
        began = time.perf_counter()
        await _take(peer, tags, buffers, arrived, link)
        orders.send(time.perf_counter() - began)
    await fabric.close()


async def _sender(link: Connection, config: FabricConfig) -> None:
    fabric, peer = await _joined(link, config)
    sources = _Buffers()
    while (order := await _next(link)) is not None:
        point, tags = order
        buffers = sources.of(point)
        link.send("ready")
        await _give(peer, tags, buffers, link)
    await fabric.close()


async def _joined(link: Connection, config: FabricConfig) -> tuple[Fabric, Peer]:
    fabric = make_fabric(config)
    link.send(fabric.address)
    return fabric, fabric.connect(await _next(link))


async def _next(connection: Connection) -> Any:
    try:
        return await asyncio.to_thread(connection.recv)
    except EOFError:
        return None


async def _take(peer: Peer, tags: list[int], buffers: list[Bytes], arrived: Arrived, link: Connection) -> None:
    """One lane per buffer; each takes the next tag when its last message is there, and says over `link`, in one byte,
    that it waits for it: a message goes out when somebody waits for it, as between nodes."""
    remaining = iter(tags)

    async def lane(buffer: Bytes) -> None:
        for tag in remaining:
            receiving = peer.receive(tag, buffer)
            os.write(link.fileno(), _CREDIT)
            await receiving
            arrived(buffer)

    await asyncio.gather(*(lane(buffer) for buffer in buffers))


async def _give(peer: Peer, tags: list[int], buffers: list[Bytes], link: Connection) -> None:
    loop, credits, missing = asyncio.get_running_loop(), asyncio.Semaphore(0), len(tags)
    remaining = iter(tags)

    def credited() -> None:
        nonlocal missing
        credit = os.read(link.fileno(), missing)
        missing -= len(credit)
        if not missing or not credit:
            loop.remove_reader(link.fileno())
        for _ in credit:
            credits.release()

    async def lane(buffer: Bytes) -> None:
        for tag in remaining:
            await credits.acquire()
            await peer.send(tag, buffer)

    loop.add_reader(link.fileno(), credited)
    await asyncio.gather(*(lane(buffer) for buffer in buffers))


class _Buffers:
    """The buffers of the last point: touched once, then reused, as slots are."""

    def __init__(self) -> None:
        self._point: tuple[int, int] | None = None
        self._buffers: list[Bytes] = []

    def of(self, point: Point) -> list[Bytes]:
        if self._point != (point.size_bytes, point.in_flight):
            self._point, self._buffers = (point.size_bytes, point.in_flight), []
            self._buffers = [_content(point.size_bytes) for _ in range(point.in_flight)]
        return self._buffers


def _content(size_bytes: int) -> Bytes:
    return np.resize(np.arange(251, dtype=np.uint8), size_bytes)


def _digests(buffer: Bytes) -> list[int]:
    starts = range(0, buffer.size, GRANULE_BYTES_MAX)
    return [xxhash.xxh3_64_intdigest(buffer[start : start + GRANULE_BYTES_MAX].data) for start in starts]


def _expected(size_bytes: int) -> list[int]:
    return _digests(_content(size_bytes))


def _believe(buffer: Bytes) -> None:
    pass


def _verify(expected: list[int]) -> Arrived:
    def verify(buffer: Bytes) -> None:
        if _digests(buffer) != expected:
            raise ChecksumMismatch("the bench's own bytes did not arrive")

    return verify
