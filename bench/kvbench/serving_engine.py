"""An engine's stand-in that serves requests in time: its GPU is a clock, its KV and all that is done with it are real.

It does what `kvstore.cli.demo_lines` brings. A prefill engine admits requests in the order in which they come, so many
loads at a time; its GPU computes one thing after the other, a layer group as soon as its history is there; what is
computed goes on to the decode engine layer group by layer group. Bytes follow from the blocks' keys; some blocks of
each request are compared on either side, all of them by checksum.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvbench.engine_model import EngineModel
from kvbench.workload import Prompt
from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import LayerGroup, Layout, layer_groups
from kvstore.blocks.namespace import Namespace
from kvstore.cli import demo_lines
from kvstore.cli.demo_bytes import DerivedKV
from kvstore.client import AsyncClient, Load, Match, buffers
from kvstore.errors import ChecksumMismatch, KVStoreError, Refused

LAYERS = 4
_PAGE_TOKENS = 16
_DEADLINE_S = 30.0
_FILL_S = 60.0
_COMPARED_BLOCKS = 2

Bytes = npt.NDArray[np.uint8]


def layout_of(token_bytes: int, block_tokens: int) -> Layout:
    """Of a model whose token has so many bytes in LAYERS layers: whole 64-bit words in each."""
    assert token_bytes % (LAYERS * 8) == 0
    group = LayerGroup(LAYERS, _PAGE_TOKENS, _PAGE_TOKENS * token_bytes // LAYERS, "uint8", tensors=1, packing="packed")
    return Layout((group,), block_tokens)


class Gpu:
    """A clock that does one thing after the other."""

    def __init__(self) -> None:
        self._free_s = 0.0

    async def run(self, seconds: float) -> None:
        self._free_s = max(self._free_s, time.monotonic()) + seconds
        await asyncio.sleep(self._free_s - time.monotonic())


@dataclass(slots=True)
class _Admitted:
    """A request between its admission and its first token. handed: its part that goes to the decode engine."""

    prompt: Chain
    match: Match | None
    handed: Chain
    skipped_tokens: int
    ticket: str
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)


class Worker:
    """One client and one GPU."""

    def __init__(self, client: AsyncClient, model: EngineModel, loads_max: int) -> None:
        self._client = client
        self._layout = client.layout
        self._model = model
        self._gpu = Gpu()
        self._slots = asyncio.Semaphore(loads_max)
        self._admitted: dict[str, _Admitted] = {}
        self._idle: list[Bytes] = []
        self._derived = DerivedKV(client.layout)
        self._groups = layer_groups(client.layout, client.layout.granule_layers)
        self._random = random.Random(1)

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"op": "fill", "prompt": prompt}:
                return await self._fill(Prompt.from_json(prompt))
            case {"op": "admit", "name": name, "prompt": prompt, "history": history}:
                return await self._admit(name, Prompt.from_json(prompt), history)
            case {"op": "prefill", "name": name, "keep_at": keep_at}:
                return await self._prefill(self._admitted.pop(name), keep_at)
            case {"op": "decode", "prompt": prompt, "skipped": skipped, "answer": answer, "ticket": ticket}:
                return await self._decode(Prompt.from_json(prompt), int(skipped), Prompt.from_json(answer), ticket)
        raise AssertionError(f"no such request: {request}")

    def forget(self) -> None:
        """Gives up what was admitted and not begun."""
        for _ in self._admitted:
            self._slots.release()
        self._admitted.clear()

    async def _fill(self, prompt: Prompt) -> dict[str, Any]:
        """Stores a history's full blocks, and waits where the tier has to make room first."""
        chain = self._client.chain(prompt.made())
        async with self._memory(len(chain)) as memory:
            self._derive(chain, memory, 0, 0, LAYERS)
            deadline = time.monotonic() + _FILL_S
            while True:
                stored = await self._client.store(chain, buffers.contiguous(memory, self._layout))
                if not stored.refused:
                    return {"blocks": len(chain)}
                if time.monotonic() > deadline:
                    raise Refused(f"storage has no room for {stored.refused} of {len(chain)} blocks")
                await asyncio.sleep(max(stored.retry_after_s, 0.01))

    async def _admit(self, name: str, prompt: Prompt, history: str) -> dict[str, Any]:
        """Waits for its turn, looks for the history, and offers the KV. history: loaded, free (of cost) or none."""
        tokens = prompt.made()
        await self._slots.acquire()
        try:
            chain = self._client.chain(tokens)
            found = None if history == "none" else await self._client.match(chain)
            if found is not None and found.tokens == tokens.size:  # an engine computes the last token at least
                found = await self._client.match(chain.prefix(len(chain) - 1))
            skipped = found.tokens if found is not None and history == "free" else 0
            handed = self._client.chain(tokens[skipped:])
            ticket = await self._client.offer(handed, deadline_s=_DEADLINE_S)
        except BaseException:
            self._slots.release()
            raise
        self._admitted[name] = _Admitted(chain, found, handed, skipped, ticket)
        return {"ticket": ticket, "skipped": skipped}

    async def _prefill(self, admitted: _Admitted, keep_at: str) -> dict[str, Any]:
        """Loads what was found, computes the rest beside it, and hands all of it over."""
        chain, free = admitted.handed, admitted.skipped_tokens > 0
        async with self._memory(len(chain) + 1) as memory:
            try:
                loaded = 0 if free else await self._load_and_compute(admitted, memory, keep_at)
            finally:
                self._slots.release()
            hit_tokens = admitted.skipped_tokens or loaded * self._layout.block_tokens
            if not loaded:
                await self._gpu.run(self._model.prefill_s(hit_tokens, admitted.prompt.tokens))
            first_s = time.monotonic()
            self._derive(chain, memory, loaded, 0, LAYERS)
            writer = await self._client.send(admitted.ticket, buffers.contiguous(memory, self._layout), chain)
            try:
                for first_layer, layers in self._groups:
                    await writer.write_layers(first_layer, layers)
                await writer.commit()
            except BaseException:
                await writer.abort()
                raise
        sources = [[tier, route, count] for (tier, route), count in admitted.sources.items()]
        return {"first_s": first_s, "hit_tokens": hit_tokens, "sources": sources}

    async def _load_and_compute(self, admitted: _Admitted, memory: Bytes, keep_at: str) -> int:
        """The GPU computes each layer group once its history is there, and at the end what did not come. How many
        blocks came."""
        match, tokens = admitted.match, admitted.prompt.tokens
        if match is None or not match.blocks:
            return 0
        step_s = self._model.prefill_s(match.tokens, tokens) / LAYERS
        kv = buffers.contiguous(memory, self._layout)
        layers = self._groups[0][1]
        load = self._client.load(match, kv, group_layers=layers, deadline_s=_DEADLINE_S, keep_at=keep_at)
        async with _own(load):
            async for group in load:
                await self._gpu.run(step_s * group.layers)
            result = await load.result()
        if result.blocks < match.blocks:
            await self._gpu.run(self._model.prefill_s(result.tokens, match.tokens))
        for source in result.sources:
            admitted.sources[source.tier, source.route] += source.bytes
        self._compare(admitted.prompt, memory, result.blocks)
        return result.blocks

    async def _decode(self, prompt: Prompt, skipped: int, answer: Prompt, ticket: str) -> dict[str, Any]:
        """Takes the prompt's KV, generates the answer in the model's time, and stores the blocks that it fills."""
        tokens, said = prompt.made()[skipped:], answer.made()
        chain = self._client.chain(tokens)
        whole = self._client.chain(np.concatenate([tokens, said]))
        async with self._memory(len(whole) + 1) as memory:
            kv = buffers.contiguous(memory, self._layout)
            receiving = self._client.receive(ticket, kv, chain, deadline_s=_DEADLINE_S)
            async with _own(receiving):
                received = await receiving.result()
            if received.tokens < chain.tokens:
                raise KVStoreError(f"handoff: {received.tokens} of {chain.tokens} tokens came: {received.missing[:1]}")
            began_s = time.monotonic()
            self._compare(chain, memory, received.blocks)
            growing = self._client.grow(tokens, kv, blocks_done=len(chain))
            context = skipped + chain.tokens
            for done, upto in self._fills(chain.tokens, said.size):
                await asyncio.sleep(began_s + self._model.decode_s(context, context + upto - 1) - time.monotonic())
                self._derive(
                    whole.prefix((chain.tokens + upto) // self._layout.block_tokens), memory, len(chain), 0, LAYERS
                )
                growing.append(said[done:upto])
            last_s = time.monotonic()
            await growing.close()
        # The prefill engine's GPU made the first token, this one the second.
        return {"second_s": began_s + self._model.decode_s(context, context + 1), "last_s": last_s}

    def _fills(self, before: int, count: int) -> list[tuple[int, int]]:
        """(from, to) of the answer's tokens, cut where a block is full."""
        block = self._layout.block_tokens
        ends = [*range(block - before % block, count, block), count]
        return list(zip([0, *ends], ends, strict=False))

    def _derive(self, chain: Chain, memory: Bytes, first_block: int, first_layer: int, layers: int) -> None:
        """What the GPU computes of the chain's full blocks from first_block on."""
        for key, block in zip(chain.keys[first_block:], memory[first_block:], strict=False):
            self._derived.fill(key, first_layer, block[first_layer : first_layer + layers])

    def _compare(self, chain: Chain, memory: Bytes, blocks: int) -> None:
        for block in self._random.sample(range(blocks), min(blocks, _COMPARED_BLOCKS)):
            if self._derived.differing(chain.keys[block], 0, memory[block]):
                raise ChecksumMismatch(f"block {block} of {blocks} is not what was stored")

    @asynccontextmanager
    async def _memory(self, blocks: int) -> AsyncIterator[Bytes]:
        """[block, layer, byte]. Kept for the next: fresh pages cost more than a copy."""
        memory = self._idle.pop() if self._idle else np.empty((0, LAYERS, self._layout.layer_bytes), np.uint8)
        if len(memory) < blocks:
            memory = np.empty((blocks, LAYERS, self._layout.layer_bytes), np.uint8)
        try:
            yield memory[:blocks]
        finally:
            self._idle.append(memory)


@asynccontextmanager
async def _own(load: Load) -> AsyncIterator[None]:
    """Whoever leaves the block early has its buffers back: the load has let go of them."""
    try:
        yield
    except BaseException:
        await load.cancel()
        raise


async def _work(args: argparse.Namespace) -> None:
    model = EngineModel.from_fields(json.loads(args.model))
    layout = layout_of(model.token_bytes, args.block_tokens)
    namespace = Namespace.of(f"kvbench-{model.name}", layout)
    client = await AsyncClient.connect(node=args.node, namespace=namespace, layout=layout)
    worker = Worker(client, model, args.loads)
    running: set[asyncio.Task[None]] = set()

    async def answer(request: dict[str, Any]) -> None:
        try:
            said = await demo_lines.answered(worker.answer, request)
        except asyncio.CancelledError:
            said = {"id": request["id"], "error": f"{request['op']}: given up"}
        _say(said)

    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        if request["op"] == "give_up":
            for task in running:
                task.cancel()
            await asyncio.gather(*running)
            worker.forget()
            _say({"id": request["id"], "reply": {}})
            continue
        task = asyncio.create_task(answer(request))
        running.add(task)
        task.add_done_callback(running.discard)
    for task in running:
        task.cancel()
    await asyncio.gather(*running)
    await client.close()


def _say(said: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        print(json.dumps(said), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--model", required=True, help="JSON")
    parser.add_argument("--block-tokens", type=int, required=True)
    parser.add_argument("--loads", type=int, required=True)
    asyncio.run(_work(parser.parse_args()))


if __name__ == "__main__":
    main()
