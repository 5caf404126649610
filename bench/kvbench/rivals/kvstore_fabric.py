"""kvstore's fabric of plain sockets, as nodes use it without RDMA: a message goes out when it is waited for."""

import argparse
import asyncio
import base64
from collections.abc import Iterator

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.movers import serve
from kvstore.config import FabricConfig
from kvstore.fabric import make_fabric
from kvstore.fabric.base import Fabric, Peer

_JOINED = (1 << 63) - 1
_READY = 1 << 63
"""Tags of the messages by which the taker says that it waits for a turn's blocks."""


class FabricMover:
    """A message's tag is its block's number, which both sides count alike, as they do turns."""

    def __init__(self, device: str, memory: Bytes) -> None:
        self._runner = asyncio.Runner()
        self._memory = memory
        self._fabric = self._runner.run(self._made(FabricConfig(kind="tcp", device=device)))
        self._moved = self._turns = 0
        self._said = bytearray(1)

    def address(self) -> str:
        return base64.b64encode(self._fabric.address).decode()

    def join(self, peer: str) -> None:
        async def connect() -> Peer:
            joined = self._fabric.connect(base64.b64decode(peer))
            self._ready = joined.receive(_READY, self._said)
            # Connected both ways; between calls the event loop stands still.
            await asyncio.gather(joined.receive(_JOINED, bytearray(1)), joined.send(_JOINED, bytes(1)))
            return joined

        self._peer = self._runner.run(connect())

    def give(self, blocks: Blocks) -> None:
        self._runner.run(self._give(blocks))

    def take(self, blocks: Blocks) -> None:
        self._runner.run(self._take(blocks))

    def close(self) -> None:
        self._runner.run(self._fabric.close())
        self._runner.close()

    async def _made(self, config: FabricConfig) -> Fabric:
        return make_fabric(config)

    async def _give(self, blocks: Blocks) -> None:
        await self._ready
        self._turns += 1
        self._ready = self._peer.receive(_READY + self._turns, self._said)
        await asyncio.gather(*(self._peer.send(tag, part) for tag, part in self._parts(blocks)))

    async def _take(self, blocks: Blocks) -> None:
        receiving = [self._peer.receive(tag, part) for tag, part in self._parts(blocks)]
        ready = self._peer.send(_READY + self._turns, self._said)
        self._turns += 1
        await asyncio.gather(ready, *receiving)

    def _parts(self, blocks: Blocks) -> Iterator[tuple[int, Bytes]]:
        parts = self._memory[: blocks.bytes].reshape(blocks.count, blocks.block_bytes)
        numbers = range(self._moved, self._moved + blocks.count)
        self._moved += blocks.count
        return zip(numbers, parts, strict=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, help="the network device, as UCX names it")
    parser.add_argument("--bytes", type=int, required=True)
    args = parser.parse_args()
    serve(lambda memory: FabricMover(args.device, memory), args.bytes)
