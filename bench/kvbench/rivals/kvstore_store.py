"""kvstore as an engine uses it: `store`, `match` and `load` of its client, through the node of its host."""

import argparse
import asyncio

import numpy as np

from kvbench.layouts import layout_of
from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.stores import serve
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import BLOCK_TOKENS
from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from kvstore.config import ClientConfig
from kvstore.errors import ControlUnavailable
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel

_LOOK_S = 5.0


class KVStore:
    """verify: checksums are made and compared (the default of the client)."""

    def __init__(self, node: str, control: str, copies: int, verify: bool) -> None:
        self._node = node
        self._control = control
        self._copies = copies
        self._config = ClientConfig(verify=verify)
        self._runner = asyncio.Runner()
        self._clients: dict[int, AsyncClient] = {}
        self._runner.run(self._client(1024 * 1024))  # a node that is not there is known now

    def registered(self, memory: Bytes) -> None:
        """The client copies to and from any memory."""

    def put(self, blocks: Blocks, source: Bytes, copies: int) -> int:
        assert copies == self._copies, "copies are a rule of the namespace"

        async def store() -> int:
            client = await self._client(blocks.block_bytes)
            done = await client.store(_chain(client, blocks), buffers.contiguous(source, client.layout))
            return done.stored

        return self._runner.run(store())

    def readable(self, blocks: Blocks) -> int:
        async def match() -> int:
            client = await self._client(blocks.block_bytes)
            return (await client.match(_chain(client, blocks))).blocks

        return self._runner.run(match())

    def copies(self, blocks: Blocks) -> int:
        async def look() -> int:
            chain = _chain(await self._client(blocks.block_bytes), blocks)
            async with open_channel(self._control) as channel:
                request = admin_pb2.PrefixBlocksRequest(
                    caller=caller("kvbench"), namespace_id=chain.namespace_id, keys=chain.packed
                )
                reply = await admin_pb2_grpc.AdminStub(channel).PrefixBlocks(request, timeout=_LOOK_S)
            places = [sum(place.alive for place in block.locations) for block in reply.blocks]
            return min(places) if len(places) == blocks.count else 0

        return self._runner.run(look())

    def get(self, blocks: Blocks, target: Bytes) -> int:
        async def load() -> int:
            client = await self._client(blocks.block_bytes)
            match = await client.match(_chain(client, blocks))
            if match.blocks < blocks.count:
                if match.partial:
                    raise ControlUnavailable("only what this node holds itself can be found")
                return match.blocks
            result = await client.load(match, buffers.contiguous(target, client.layout)).result()
            return result.blocks

        return self._runner.run(load())

    def forget(self, blocks: Blocks) -> None:
        """The node makes room when it needs it."""

    def close(self) -> None:
        async def close() -> None:
            for client in self._clients.values():
                await client.close()

        self._runner.run(close())
        self._runner.close()

    async def _client(self, block_bytes: int) -> AsyncClient:
        if block_bytes not in self._clients:
            layout = layout_of(block_bytes)
            self._clients[block_bytes] = await AsyncClient.connect(
                node=self._node,
                namespace=Namespace.of("kvbench-peers", layout),
                layout=layout,
                config=self._config,
                rules={"copies": self._copies},
            )
        return self._clients[block_bytes]


def _chain(client: AsyncClient, blocks: Blocks) -> Chain:
    tokens = np.random.default_rng(blocks.seed).integers(0, 2**32, blocks.count * BLOCK_TOKENS, dtype=np.uint32)
    return client.chain(tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True, help="the node's socket")
    parser.add_argument("--control", required=True, help="the control plane's address")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--no-verify", dest="verify", action="store_false")
    args = parser.parse_args()
    serve(lambda: KVStore(args.node, args.control, args.copies, args.verify))
