"""The proof with a real model: KV that went through the store is the KV that the model computed.

Engines, nodes and control plane are processes of their own; docs/engine.md says what holds to the last bit.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

PROMPT = np.random.default_rng(7).integers(0, 1024, 230).tolist()
NEW = np.random.default_rng(8).integers(0, 1024, 50).tolist()
DECODED = 32
PUBLISH_DEADLINE_S = 5.0


def logits(reply: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(reply["logits"]), np.float32)


async def matched(worker: Any, engine: str, tokens: list[int], blocks: int) -> int:
    """Asks until so many blocks are matched: another node's stores are published within 100 ms."""
    end_s = time.monotonic() + PUBLISH_DEADLINE_S
    while (found := (await worker.call("match", engine, tokens=tokens))["blocks"]) < blocks:
        if time.monotonic() > end_s:
            break
    return int(found)


async def reference(worker: Any, engine: str) -> tuple[list[int], str, int]:
    """(tokens, digest of all KV, first token) of prompt and decoding in one process, without a store."""
    await worker.call("request", engine, name="alone", tokens=PROMPT, room=DECODED)
    await worker.call("extend", engine, name="alone")
    tokens = (await worker.call("generate", engine, name="alone", count=DECODED))["tokens"]
    return tokens, (await worker.call("digest", engine, name="alone"))["digest"], tokens[0]


async def hand_over(prefill: Any, decode: Any, engine: str) -> dict[str, Any]:
    """Prefill in one process, decode in the other; the request is called "turn" in both."""
    ticket = (await prefill.call("offer", engine, tokens=PROMPT))["ticket"]
    for worker in (prefill, decode):
        await worker.call("request", engine, name="turn", tokens=PROMPT, room=DECODED)
    receiving = decode.start("receive", engine, name="turn", ticket=ticket)
    sent = await prefill.call("extend", engine, name="turn", ticket=ticket)
    received = await receiving.result()
    assert (received["tokens"], received["tail"]) == (len(PROMPT), True)
    made = await decode.call("generate", engine, name="turn", count=DECODED, first=sent["first"])
    return sent | received | made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_decode_in_another_process_is_the_same(prefill: Any, decode: Any, dtype: str) -> None:
    """(a) Handed over layer by layer, 32 greedy tokens and all KV are those of one process, to the last bit."""
    engine = f"same-{dtype}"
    for worker in (prefill, decode):
        await worker.call("open", engine, shape={"dtype": dtype}, node=worker.socket, model=engine)
    tokens, digest, first = await reference(prefill, engine)
    told = await hand_over(prefill, decode, engine)
    assert told["first"] == first
    assert told["tokens"] == tokens
    assert (await decode.call("digest", engine, name="turn"))["digest"] == digest


async def test_layers_travel_while_the_next_are_computed(prefill: Any, decode: Any) -> None:
    """(a) With prefill held up after its second layer, the decode side has the first two, and no third."""
    engine = "layers"
    for worker in (prefill, decode):
        await worker.call("open", engine, shape={}, node=worker.socket, model=engine)
        await worker.call("request", engine, name="turn", tokens=PROMPT)
    ticket = (await prefill.call("offer", engine, tokens=PROMPT))["ticket"]
    receiving = decode.start("receive", engine, name="turn", ticket=ticket)
    sending = prefill.start("extend", engine, name="turn", ticket=ticket, pause_after=1)
    assert (await sending.event())["event"] == "paused"
    assert [(await receiving.event())["first"] for _ in range(2)] == [0, 1]
    prefill.go_on()
    await sending.result()
    await receiving.result()
    assert [event["first"] for event in receiving.events] == [0, 1, 2, 3]


async def test_the_next_turn_loads_its_history(prefill: Any, decode: Any) -> None:
    """(b) What prefill computed once, loaded from the store, gives the logits of a full prefill."""
    engine = "history"
    for worker in (prefill, decode):
        await worker.call("open", engine, shape={}, node=worker.socket, model=engine)
    told = await hand_over(prefill, decode, engine)
    await decode.call("store", engine, name="turn")
    history = PROMPT + told["tokens"]
    tokens = history + NEW

    # Blocks 0 … 2 hold the prompt alone, block 3 decoded tokens too: from the prefill node, and from the decode node.
    assert await matched(prefill, engine, tokens, 4) == 4
    await prefill.call("request", engine, name="loaded", tokens=tokens)
    loaded = await prefill.call("load", engine, name="loaded")
    assert (loaded["blocks"], loaded["tokens"], loaded["nodes"]) == (4, 256, ["decode", "prefill"])
    with_store = logits(await prefill.call("extend", engine, name="loaded"))

    # The same computation with the history kept in memory: the store must change nothing at all.
    await decode.call("rewind", engine, name="turn", tokens=tokens, length=256)
    assert np.array_equal(with_store, logits(await decode.call("extend", engine, name="turn")))

    # A full prefill computes decoded tokens' KV in one multiplication of matrices, decoding one row at a time.
    await prefill.call("request", engine, name="full", tokens=tokens)
    full = logits(await prefill.call("extend", engine, name="full"))
    assert float(np.abs(with_store - full).max() / np.abs(full).max()) <= 1e-5


async def test_a_history_of_prefilled_tokens_is_exact(prefill: Any, decode: Any) -> None:
    """(b) With only prefilled tokens in the history, the logits are a full prefill's to the last bit."""
    engine = "exact"
    for worker in (prefill, decode):
        await worker.call("open", engine, shape={}, node=worker.socket, model=engine)
    tokens = PROMPT + NEW
    await decode.call("request", engine, name="first", tokens=PROMPT)
    await decode.call("extend", engine, name="first")
    assert await decode.call("store", engine, name="first") == {"stored": 3, "present": 0, "refused": 0}

    assert await matched(prefill, engine, tokens, 3) == 3
    await prefill.call("request", engine, name="loaded", tokens=tokens)
    assert (await prefill.call("load", engine, name="loaded"))["tokens"] == 192
    with_store = logits(await prefill.call("extend", engine, name="loaded"))
    await decode.call("rewind", engine, name="first", tokens=tokens, length=192)
    kept = logits(await decode.call("extend", engine, name="first"))
    assert np.array_equal(with_store, kept)

    await decode.call("request", engine, name="full", tokens=tokens)
    full = logits(await decode.call("extend", engine, name="full"))
    assert float(np.abs(with_store - full).max() / np.abs(full).max()) <= 1e-5
    # The kernels allow it where the same split without a store gives the full prefill's bits.
    assert np.array_equal(with_store, full) or not np.array_equal(kept, full)


async def test_nothing_crosses_layouts_and_extras(prefill: Any, decode: Any) -> None:
    """(c) Another layout under the same model's name, and another extra, match nothing and are given nothing."""
    await prefill.call("open", "first", shape={}, node=prefill.socket, model="shared")
    for worker in (prefill, decode):
        await worker.call("open", "second", shape={"page_tokens": 32}, node=worker.socket, model="shared")
    await prefill.call("request", "first", name="stored", tokens=PROMPT)
    await prefill.call("extend", "first", name="stored")
    assert (await prefill.call("store", "first", name="stored"))["stored"] == 3
    assert await matched(prefill, "first", PROMPT, 3) == 3

    for worker in (prefill, decode):
        assert (await worker.call("match", "second", tokens=PROMPT))["blocks"] == 0
    assert (await prefill.call("match", "first", tokens=PROMPT, extra="salt"))["blocks"] == 0

    for engine, extra in (("second", ""), ("first", "salt")):
        await prefill.call("request", engine, name="asked", tokens=PROMPT)
        asked = await prefill.call("load", engine, name="asked", extra=extra, unmatched=True)
        assert (asked["blocks"], asked["missing"]) == (0, ["MISSING"] * 3)

    # Each keeps its own: the same tokens under the second layout and under the extra are stored beside the first.
    await prefill.call("extend", "second", name="asked")
    assert (await prefill.call("store", "second", name="asked"))["stored"] == 3
    assert (await prefill.call("store", "first", name="stored", extra="salt"))["stored"] == 3


async def test_tensor_parallel_ranks_have_a_block_together(
    cluster: Any, prefill: Any, decode: Any, tmp_path: Path
) -> None:
    """(d) A block exists once both ranks have stored their shard; both load, and decode the same tokens."""
    sides = {"prefill": [prefill, await cluster.engine("prefill")], "decode": [decode, await cluster.engine("decode")]}
    engine = "ranks"

    async def both(side: str, do: str, **fields: Any) -> list[dict[str, Any]]:
        return await asyncio.gather(*(worker.call(do, engine, **fields) for worker in sides[side]))

    for side, workers in sides.items():
        shapes = [{"ranks": 2, "rank": rank} for rank in range(2)]
        opened = (
            worker.call("open", engine, shape=shape, node=worker.socket, model=engine, rendezvous=str(tmp_path / side))
            for worker, shape in zip(workers, shapes, strict=True)
        )
        await asyncio.gather(*opened)

    await both("prefill", "request", name="turn", tokens=PROMPT, room=DECODED)
    await both("prefill", "extend", name="turn")
    await sides["prefill"][0].call("store", engine, name="turn")
    for worker in [*sides["prefill"], *sides["decode"]]:
        assert (await worker.call("match", engine, tokens=PROMPT))["blocks"] == 0
    await sides["prefill"][1].call("store", engine, name="turn")
    for worker in [*sides["prefill"], *sides["decode"]]:
        assert await matched(worker, engine, PROMPT, 3) == 3

    await both("decode", "request", name="turn", tokens=PROMPT, room=DECODED)
    for loaded in await both("decode", "load", name="turn"):
        assert (loaded["tokens"], loaded["nodes"]) == (192, ["prefill"])
    digests = [await both(side, "digest", name="turn", tokens=192) for side in sides]
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]

    await both("decode", "extend", name="turn")
    made = [reply["tokens"] for side in sides for reply in await both(side, "generate", name="turn", count=DECODED)]
    assert made == [made[0]] * 4
    await prefill.call("open", "whole", shape={})
    assert made[0] == (await reference(prefill, "whole"))[0]
