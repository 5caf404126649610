"""kvstore's fabric, as nodes use it between hosts: tagged messages over UCX, a bounded number of them in flight."""

import argparse
import asyncio
import base64

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.movers import serve
from kvstore.config import FabricConfig
from kvstore.fabric import make_fabric
from kvstore.fabric.base import Fabric, Peer

_IN_FLIGHT = 8


class FabricMover:
    """A message's tag is its block's number, which both sides count alike."""

    def __init__(self, device: str, memory: Bytes) -> None:
        self._runner = asyncio.Runner()
        self._memory = memory
        self._fabric = self._runner.run(self._made(FabricConfig(kind="ucx", transports="tcp", device=device)))
        self._moved = 0

    def address(self) -> str:
        return base64.b64encode(self._fabric.address).decode()

    def join(self, peer: str) -> None:
        async def connect() -> Peer:
            return self._fabric.connect(base64.b64decode(peer))

        self._peer = self._runner.run(connect())

    def give(self, blocks: Blocks) -> None:
        self._runner.run(self._move(blocks, give=True))

    def take(self, blocks: Blocks) -> None:
        self._runner.run(self._move(blocks, give=False))

    def close(self) -> None:
        self._runner.run(self._fabric.close())
        self._runner.close()

    async def _made(self, config: FabricConfig) -> Fabric:
        return make_fabric(config)

    async def _move(self, blocks: Blocks, give: bool) -> None:
        operation = self._peer.send if give else self._peer.receive
        numbers = iter(range(blocks.count))
        parts = self._memory[: blocks.bytes].reshape(blocks.count, blocks.block_bytes)

        async def lane() -> None:
            for number in numbers:
                await operation(self._moved + number, parts[number])

        await asyncio.gather(*(lane() for _ in range(_IN_FLIGHT)))
        self._moved += blocks.count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, help="the network device, as UCX names it")
    parser.add_argument("--bytes", type=int, required=True)
    args = parser.parse_args()
    serve(lambda memory: FabricMover(args.device, memory), args.bytes)
