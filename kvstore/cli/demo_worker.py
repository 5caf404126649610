"""An engine's stand-in for the demo: a process with a client, whose "attention" derives KV from the block's key.

It does what `kvstore.cli.demo_lines` brings, and ends when its input ends.
"""

import argparse
import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout, layer_groups
from kvstore.blocks.namespace import Namespace
from kvstore.cli import demo_lines
from kvstore.cli.demo_bytes import Bytes, DerivedKV, tail_key
from kvstore.cli.demo_report import Figures
from kvstore.cli.demo_sessions import Tokens
from kvstore.client import AsyncClient, Match, buffers
from kvstore.errors import KVStoreError
from kvstore.observe import log

LAYOUT = Layout.dense(layers=8, kv_heads=4, head_dim=128)
"""1 MiB per block of 64 tokens: four granules of two layers, so that loads and handoffs come in layer groups."""

_GROUPS = layer_groups(LAYOUT, LAYOUT.granule_layers)
MODEL = "kvstore-demo"
TICKET_DEADLINE_S = 60.0


class Request:
    """One prompt's KV in the engine's memory: block i of the chain lies in row i, the partial block in the last one."""

    def __init__(self, chain: Chain, tokens: Tokens, memory: Bytes) -> None:
        self.chain = chain
        tail = (tail_key(chain, tokens),) if chain.tail_tokens else ()
        self.keys = (*chain.keys, *tail)
        self.tail_pages = math.ceil(chain.tail_tokens / LAYOUT.group.page_tokens)
        self.memory = memory.reshape(-1, LAYOUT.layers, LAYOUT.layer_bytes)
        self.kv = buffers.contiguous(memory, LAYOUT)

    def derive(self, derived: DerivedKV, first_block: int, first_layer: int, layers: int) -> None:
        """The engine's computation: writes the KV of all blocks from `first_block` on."""
        for block in range(first_block, len(self.keys)):
            derived.fill(self.keys[block], first_layer, self.memory[block, first_layer : first_layer + layers])

    def check(self, derived: DerivedKV, blocks: int, first_layer: int, layers: int, figures: Figures) -> None:
        """Compares every byte of the first `blocks` blocks with what its key says."""
        for block in range(blocks):
            pages = self.tail_pages if block >= len(self.chain) else None
            given = self.memory[block, first_layer : first_layer + layers]
            figures.mismatches += derived.differing(self.keys[block], first_layer, given, pages)
            there = LAYOUT.pages_per_block if pages is None else pages
            figures.verified_bytes += given.nbytes * there // LAYOUT.pages_per_block


class Worker:
    """Answers the demo's requests with one client. Several requests may be under way at once."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._idle: list[Bytes] = []
        self.ops: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "match": self.match,
            "offer": self.offer,
            "prefill": self.prefill,
            "decode": self.decode,
            "resume": self.resume,
        }

    async def match(self, tokens: Tokens) -> dict[str, Any]:
        """What an engine's scheduler does: asks how much of the prompt is stored."""
        return {"match": (await self._client.match(tokens)).to_json()}

    async def offer(self, tokens: Tokens) -> dict[str, Any]:
        """A ticket for the prompt's KV, before any of it exists."""
        return {"ticket": await self._client.offer(self._client.chain(tokens), deadline_s=TICKET_DEADLINE_S)}

    async def prefill(self, tokens: Tokens, match: str, ticket: str) -> dict[str, Any]:
        """Loads the history, computes the rest layer by layer, stores it and hands all of it over."""
        figures = Figures()
        async with self._request(tokens) as (request, derived):
            loaded = await self._load(request, derived, Match.from_json(match), "load", figures)
            writer = await self._client.send(ticket, request.kv)
            seconds = 0.0
            for first_layer, layers in _GROUPS:
                await asyncio.to_thread(request.derive, derived, loaded, first_layer, layers)
                began = time.perf_counter()
                await writer.write_layers(first_layer, layers)
                seconds += time.perf_counter() - began
            began = time.perf_counter()
            stored = await writer.commit()
            figures.move("store, prefill", stored.bytes, seconds + time.perf_counter() - began)
        return dataclasses.asdict(figures)

    async def decode(self, tokens: Tokens, answer: Tokens, ticket: str) -> dict[str, Any]:
        """Receives the prompt's KV, checks all of it, generates the answer and stores the blocks that it fills."""
        figures = Figures()
        said = np.concatenate([tokens, answer])
        async with self._request(tokens, said) as (request, derived):
            load = self._client.receive(ticket, request.kv, request.chain, group_layers=LAYOUT.granule_layers)
            async for group in load:
                layers = (group.first_layer, group.layers, figures)
                await asyncio.to_thread(request.check, derived, len(request.keys), *layers)
            result = await load.result()
            if result.tokens < request.chain.tokens:
                raise KVStoreError(f"handoff: {result.blocks} of {len(request.chain)} blocks came: {result.missing}")
            # The wait for the first layers is prefill's; the others tell how fast bytes travel.
            seconds = (result.duration_s - result.first_group_s) * len(_GROUPS) / (len(_GROUPS) - 1)
            for source in result.sources:
                figures.move(f"handoff, {source.route}", source.bytes, seconds)
            await self._store_answer(Request(self._client.chain(said), said, request.memory), request, derived, figures)
        return dataclasses.asdict(figures)

    async def resume(self, tokens: Tokens) -> dict[str, Any]:
        """Takes a conversation over from the other side: loads all of it that is stored, and checks it."""
        figures = Figures()
        async with self._request(tokens) as (request, derived):
            await self._load(request, derived, await self._client.match(request.chain), "take over", figures)
        return dataclasses.asdict(figures)

    async def _load(self, request: Request, derived: DerivedKV, match: Match, path: str, figures: Figures) -> int:
        """How many blocks of the prompt are there and right."""
        figures.blocks, figures.matched = len(request.chain), match.blocks
        if not match.blocks:
            return 0
        result = await self._client.load(match, request.kv).result()
        await asyncio.to_thread(request.check, derived, result.blocks, 0, LAYOUT.layers, figures)
        for source in result.sources:
            figures.move(f"{path}, {source.route}", source.bytes, source.duration_s)
        for missing in result.missing:
            name = missing.outcome.name.lower()
            figures.missing[name] = figures.missing.get(name, 0) + 1
        return result.blocks

    async def _store_answer(self, after: Request, before: Request, derived: DerivedKV, figures: Figures) -> None:
        first = len(before.chain)
        if len(after.chain) == first:
            return
        await asyncio.to_thread(after.derive, derived, first, 0, LAYOUT.layers)
        began = time.perf_counter()
        stored = await self._client.store(after.chain, after.kv, first_block=first)
        figures.move("store, decode", stored.bytes, time.perf_counter() - began)

    @asynccontextmanager
    async def _request(self, tokens: Tokens, said: Tokens | None = None) -> AsyncIterator[tuple[Request, DerivedKV]]:
        """A request with memory for all that will be said. The memory is kept: fresh pages cost more than the copy."""
        longest = tokens if said is None else said
        needed = (longest.size // LAYOUT.block_tokens + 1) * LAYOUT.block_bytes
        memory = self._idle.pop() if self._idle else np.empty(0, np.uint8)
        if memory.size < needed:
            memory = np.empty(needed, np.uint8)
        try:
            yield Request(self._client.chain(tokens), tokens, memory), DerivedKV(LAYOUT)
        finally:
            self._idle.append(memory)


async def _work(node: str) -> None:
    client = await AsyncClient.connect(node=node, namespace=Namespace.of(MODEL, LAYOUT), layout=LAYOUT)
    worker = Worker(client)

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        for name in {"tokens", "answer"} & request.keys():
            request[name] = np.frombuffer(bytes.fromhex(request[name]), np.uint32)
        return await worker.ops[request.pop("op")](**request)

    await demo_lines.serve(answer)
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--log-level", choices=log.LEVELS, default="warning")
    args = parser.parse_args()
    log.set_up(args.log_level, args.name)
    asyncio.run(_work(args.node))


if __name__ == "__main__":
    main()
