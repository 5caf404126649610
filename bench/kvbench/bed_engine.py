"""An engine's stand-in on a host of the testbed: stores histories whose bytes follow from their keys, loads them, and
compares every byte.

It does what `kvstore.cli.demo_lines` brings. A history is named by its seed: the same seed is the same prompt
everywhere.
"""

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli import demo_lines
from kvstore.cli.demo_bytes import DerivedKV
from kvstore.client import AsyncClient, Match, buffers
from kvstore.errors import ChecksumMismatch, DeadlineExceeded, Refused

LAYOUT = Layout.dense(layers=32, kv_heads=8, head_dim=128)
"""Llama 3 8B: 8 MiB a block of 64 tokens; a layer is a granule."""
GROUPS = 8
"""Layer groups of a load."""
_NAMESPACE = Namespace.of("kvbench-dualpath", LAYOUT)
_PUBLISHED_S = 10.0
_POISON = 0xA5

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a history is loaded to. memory: [block, layer, byte]. missing: blocks that the last load did not bring."""

    match: Match
    memory: Bytes
    missing: set[int] = field(default_factory=set)


class Worker:
    """One client, and the histories that it was told to prepare for."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._targets: dict[str, _Target] = {}
        self._derived = DerivedKV(LAYOUT)

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"op": "store", "seed": seed, "blocks": blocks}:
                return await self._store(self._chain(seed, int(blocks)))
            case {"op": "prepare", "seed": seed, "blocks": blocks}:
                return await self._prepare(seed, self._chain(seed, int(blocks)))
            case {"op": "load", "seed": seed, "deadline_s": deadline_s}:
                return await self._load(self._targets[seed], float(deadline_s))
            case {"op": "check", "seed": seed}:
                return {"differing_layers": await asyncio.to_thread(self._differing, self._targets[seed])}
            case {"op": "offer", "seed": seed, "blocks": blocks}:
                return {"ticket": await self._client.offer(self._chain(seed, int(blocks)))}
            case {"op": "send", "seed": seed, "blocks": blocks, "ticket": ticket}:
                return await self._send(self._chain(seed, int(blocks)), ticket)
            case {"op": "receive", "seed": seed, "blocks": blocks, "ticket": ticket}:
                return await self._receive(self._chain(seed, int(blocks)), ticket)
        raise AssertionError(f"no such request: {request}")

    def _chain(self, seed: str, blocks: int) -> Chain:
        tokens = np.random.default_rng(int(seed)).integers(0, 2**32, blocks * LAYOUT.block_tokens, dtype=np.uint32)
        return self._client.chain(tokens)

    def _filled(self, chain: Chain) -> Bytes:
        memory = np.empty((len(chain), LAYOUT.layers, LAYOUT.layer_bytes), np.uint8)
        for key, block in zip(chain.keys, memory, strict=True):
            self._derived.fill(key, 0, block)
        return memory

    async def _store(self, chain: Chain) -> dict[str, Any]:
        memory = self._filled(chain)
        stored = await self._client.store(chain, buffers.contiguous(memory, LAYOUT))
        if stored.stored != len(chain):
            raise Refused(f"only {stored.stored} of {len(chain)} blocks were stored: {stored}")
        return {"bytes": stored.bytes}

    async def _prepare(self, seed: str, chain: Chain) -> dict[str, Any]:
        """Waits until all of the history is matched, and has memory for it that was touched."""
        deadline = time.monotonic() + _PUBLISHED_S
        while (match := await self._client.match(chain)).blocks < len(chain):
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{match.blocks} of {len(chain)} blocks were published")
            await asyncio.sleep(0.02)
        memory = np.full((len(chain), LAYOUT.layers, LAYOUT.layer_bytes), _POISON, np.uint8)
        self._targets[seed] = _Target(match, memory)
        return {}

    async def _load(self, target: _Target, deadline_s: float) -> dict[str, Any]:
        kv, group_layers = buffers.contiguous(target.memory, LAYOUT), LAYOUT.layers // GROUPS
        began_s = time.monotonic()
        result = await self._client.load(target.match, kv, group_layers=group_layers, deadline_s=deadline_s).result()
        target.missing.update(missing.block for missing in result.missing)
        routes: Counter[str] = Counter()
        for source in result.sources:
            routes[source.route] += source.bytes
        return {
            "began_s": began_s,
            "ended_s": time.monotonic(),
            "first_group_s": result.first_group_s,
            "blocks": result.blocks,
            "bytes": result.bytes,
            "routes": dict(routes),
            "missing": dict(Counter(missing.outcome.name.lower() for missing in result.missing)),
        }

    async def _send(self, chain: Chain, ticket: str) -> dict[str, Any]:
        """All layers, group after group, as a prefill that is as fast as memory."""
        writer = await self._client.send(ticket, buffers.contiguous(self._filled(chain), LAYOUT))
        began_s, group_layers = time.monotonic(), LAYOUT.layers // GROUPS
        for first_layer in range(0, LAYOUT.layers, group_layers):
            await writer.write_layers(first_layer, group_layers)
        await writer.commit()
        return {"began_s": began_s}

    async def _receive(self, chain: Chain, ticket: str) -> dict[str, Any]:
        memory = np.full((len(chain), LAYOUT.layers, LAYOUT.layer_bytes), _POISON, np.uint8)
        result = await self._client.receive(ticket, buffers.contiguous(memory, LAYOUT), chain).result()
        ended_s = time.monotonic()
        if result.blocks != len(chain) or not np.array_equal(memory, self._filled(chain)):
            raise ChecksumMismatch(f"a handoff of {len(chain)} blocks did not come as it was sent: {result}")
        return {"ended_s": ended_s}

    def _differing(self, target: _Target) -> int:
        """How many layers of the blocks that came are not what their keys say."""
        blocks = zip(target.match.chain.keys, target.memory, strict=True)
        came = (each for number, each in enumerate(blocks) if number not in target.missing)
        return sum(self._derived.differing(key, 0, block) for key, block in came)


async def _work(node: str) -> None:
    client = await AsyncClient.connect(node=node, namespace=_NAMESPACE, layout=LAYOUT)
    await demo_lines.serve(Worker(client).answer)
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    asyncio.run(_work(parser.parse_args().node))


if __name__ == "__main__":
    main()
