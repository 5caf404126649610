"""`kvstore admin import`: the blocks of a file that `export` has written, stored through the node of this host.

The file is read twice: the first time all of it is verified and nothing is stored, then each block is verified once
more and stored.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.blocks.keys import Chain
from kvstore.cli.admin_export import BATCH_BYTES_MAX
from kvstore.cli.archive import ArchivedBlock, Bytes, Header
from kvstore.cli.archive_file import Opened, opened, verified
from kvstore.cli.asking import connected, seeds
from kvstore.cli.near_node import add_near_node, address_of, near_client, nodes_alive, tenants_door
from kvstore.cli.tables import progress_of_bytes, show_or_json, table
from kvstore.client import AsyncClient, buffers
from kvstore.client.storing import StoreResult
from kvstore.config import DoorConfig
from kvstore.errors import DeadlineExceeded

_CALL_S = 30.0


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `import`."""
    parser = commands.add_parser(
        "import",
        parents=[shared],
        help="stores the blocks of a file that `export` has written; a file that is torn, damaged or of another kind is"
        " refused before anything is stored",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    add_near_node(parser)
    parser.set_defaults(follow=_import, deadline_s=3600.0)


async def _import(args: argparse.Namespace, door: DoorConfig) -> int:
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(args.deadline_s):
            async with opened(args.file) as file:
                async with connected(args.control, door) as stub:
                    near = address_of(args.node, await nodes_alive(stub, _CALL_S))
                    seed = await seeds(stub, door, _CALL_S)(file.header.namespace.id)
                file.expect_seed(seed)
                size = await asyncio.to_thread(lambda: args.file.stat().st_size)
                with progress_of_bytes(f"{args.file}: verified", size) as moved:
                    seal = await verified(file, moved)
                with progress_of_bytes(f"{args.file}: stored", seal.blocks * file.header.layout.block_bytes) as moved:
                    result = await _store_all(file, near, tenants_door(args, door), moved)
    except TimeoutError:
        raise DeadlineExceeded(f"import: not done within {args.deadline_s:g} s; what it has stored stays") from None
    said = {
        "file": str(args.file),
        "namespace_id": file.header.namespace.id.hex(),
        "blocks": seal.blocks,
        "stored": result.stored,
        "present": result.present,
        "in_progress": result.in_progress,
        "bytes": result.bytes,
        "digest": seal.digest.hex(),
        "took_s": round(time.monotonic() - began_s, 3),
    }
    row = (*(f"{count:,}" for count in (result.stored, result.present, result.in_progress)), seal.digest.hex())
    columns = ("stored", "present already", "being written by others", "digest")
    show_or_json(said, args.json, table(columns, [row], title="imported"))
    return 0


async def _store_all(file: Opened, near: str, door: DoorConfig, moved: Any) -> StoreResult:
    async with AsyncExitStack() as stack:
        storing = _Storing(file.header, near, door, stack, moved)
        async for block, content in file.blocks():
            await storing.add(block, content)
        await storing.flush()
        return storing.result


class _Storing:
    """Gathers consecutive blocks of a chain, and stores them together."""

    def __init__(self, header: Header, near: str, door: DoorConfig, stack: AsyncExitStack, moved: Any) -> None:
        self._header = header
        self._near = near
        self._door = door
        self._stack = stack
        self._moved = moved
        self._clients: dict[tuple[int, int], AsyncClient] = {}
        block_bytes = header.layout.block_bytes
        self._room = np.empty((max(1, BATCH_BYTES_MAX // block_bytes), block_bytes), np.uint8)
        self._run: list[ArchivedBlock] = []
        self.result = StoreResult(0, 0, 0, 0, 0)

    async def add(self, block: ArchivedBlock, content: Bytes) -> None:
        if self._run and (len(self._run) == len(self._room) or not block.follows(self._run[-1])):
            await self.flush()
        self._room[len(self._run)] = content
        self._run.append(block)

    async def flush(self) -> None:
        """Stores what was gathered; waits while there is no room."""
        run, self._run = self._run, []
        if not run:
            return
        client = await self._client((run[0].rank, run[0].shards))
        done = 0
        while done < len(run):
            result = await client.store(
                self._chain(run[done:]), buffers.contiguous(self._room[done : len(run)], self._header.layout)
            )
            fresh = len(run) - done - result.refused
            self.result += StoreResult(result.stored, result.present, result.in_progress, 0, result.bytes)
            self._moved(fresh * self._header.layout.block_bytes)
            done += fresh
            if result.refused:
                await asyncio.sleep(result.retry_after_s)

    def _chain(self, run: Sequence[ArchivedBlock]) -> Chain:
        tokens, first = self._header.layout.block_tokens, run[0]
        depth = first.depth if first.parent else 0
        keys = tuple(block.key for block in run)
        return Chain(self._header.namespace.id, keys, len(run) * tokens, tokens, first.parent, depth)

    async def _client(self, shard: tuple[int, int]) -> AsyncClient:
        client = self._clients.get(shard)
        if client is None:
            made = await near_client(self._near, self._header, shard, self._door)
            client = self._clients[shard] = await self._stack.enter_async_context(made)
        return client
