"""Bad input: a call that can never succeed is refused with an error of its own, changes nothing, and all goes on."""

import sys
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from kvstore.client.aio import Tokens
from kvstore.errors import (
    BufferMismatch,
    InvalidInput,
    PermissionRefused,
    TooLarge,
    UnknownNamespace,
    UnsupportedLayout,
)
from kvstore.pb import control_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX
from tests.cluster import LAYOUT, Cluster, random_blocks
from tests.faults.clients import (
    SLOTS,
    SMALL,
    Shared,
    empty_kv,
    kv_of,
    raw_calls,
    still_serves,
)
from tests.faults.engine import prompt
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

TINY = Layout.dense(layers=1, kv_heads=1, head_dim=16, dtype="uint8", dtype_bytes=1)
"""512 bytes per block: thousands of them are little."""
OTHER = Layout.dense(layers=2, kv_heads=2, head_dim=64)
MILLION_BLOCKS = 15_625  # of a million tokens


# ---- layouts and namespaces --------------------------------------------------------------------------------------


async def test_namespace_of_another_layout_is_refused_by_the_client(shared: Shared) -> None:
    """A client cannot attach with a namespace whose layout is not its own."""
    with pytest.raises(InvalidInput, match="another layout"):
        await AsyncClient.connect(node=shared.node.socket, namespace=Namespace.of("test", OTHER), layout=LAYOUT)


async def test_namespace_of_another_layout_is_refused_by_the_node(shared: Shared) -> None:
    """The node compares the fingerprint with the layout that it is told, whatever the client checked."""
    client = shared.client
    request = client._link._open_namespace()
    request.namespace.layout_fingerprint = OTHER.fingerprint
    with pytest.raises(InvalidInput, match="fingerprint"):
        await client._link.call(client._link.stub.OpenNamespace, request)
    request = client._link._open_namespace()
    request.layout.groups[0].kind = "sliding_window"
    with pytest.raises(UnsupportedLayout):
        await client._link.call(client._link.stub.OpenNamespace, request)
    await still_serves(shared, 1)


async def test_same_model_with_another_layout_shares_nothing(shared: Shared) -> None:
    """The same tokens under another layout find no block, and a chain of one is refused by the other."""
    tokens = prompt(2, 2)
    await shared.client.store(tokens, kv_of(2))
    async with await AsyncClient.connect(
        node=shared.node.socket, namespace=Namespace.of("test", OTHER), layout=OTHER
    ) as other:
        assert (await other.match(tokens)).blocks == 0
        foreign = shared.client.chain(tokens)
        with pytest.raises(InvalidInput, match="another namespace"):
            await other.match(foreign)
        with pytest.raises(InvalidInput, match="another namespace"):
            other.load(foreign, empty_kv(2, OTHER))
        with pytest.raises(InvalidInput, match="another namespace"):
            await other.store(foreign, empty_kv(2, OTHER))
    await still_serves(shared, 3)


async def test_another_tenants_namespace_is_refused(shared: Shared) -> None:
    """A session of one tenant neither reads, writes, holds nor offers in the namespace of another."""
    tokens = prompt(1, 4)
    await shared.client.store(tokens, kv_of(1))
    owned = shared.client.chain(tokens)
    theirs = Namespace.of("test", LAYOUT, tenant="mallory")
    async with await AsyncClient.connect(node=shared.node.socket, namespace=theirs, layout=LAYOUT) as mallory:
        loads = (await shared.cluster.usage(shared.node)).counters["loads"]
        answers = await raw_calls(mallory, owned.namespace_id, owned.packed)
        assert {name: type(error) for name, error in answers.items()} == dict.fromkeys(answers, PermissionRefused)
        # Not when its slabs are mapped: what came from other nodes would have been landed in mallory's.
        assert (await shared.cluster.usage(shared.node)).counters["loads"] == loads
        request = shared.client._link._open_namespace()
        request.session_id = mallory._link.session_id
        with pytest.raises(PermissionRefused):
            await mallory._link.call(mallory._link.stub.OpenNamespace, request)
    await still_serves(shared, 5)


async def test_namespace_that_was_never_opened(shared: Shared) -> None:
    """The node says that it does not know the namespace; a hold on it confirms nothing."""
    answers = await raw_calls(shared.client, b"n" * 16, b"k" * 16)
    assert {name: type(error) for name, error in answers.items()} == {
        "reserve": UnknownNamespace,
        "offer": UnknownNamespace,
        "load": UnknownNamespace,
        "hold": type(None),
    }
    await still_serves(shared, 6)


@pytest.mark.parametrize("keys", [b"k" * 15, b"k" * 17, b"k" * 32], ids=["short", "long", "one key twice"])
async def test_keys_that_are_none(shared: Shared, keys: bytes) -> None:
    """Key columns that are no multiple of 16 bytes, or name a block twice, reserve nothing."""
    answers = await raw_calls(shared.client, shared.client.namespace.id, keys)
    assert isinstance(answers["reserve"], InvalidInput)
    await still_serves(shared, 7 + len(keys))


# ---- buffers -----------------------------------------------------------------------------------------------------


class _OnDevice:
    """What a CUDA array looks like from outside."""

    def __init__(self, blocks: int) -> None:
        shape = (blocks, LAYOUT.block_bytes)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": (4096, False), "version": 3}


async def test_buffer_too_small(shared: Shared) -> None:
    """A buffer with fewer blocks than the chain is refused before anything is leased, pinned or claimed."""
    tokens = prompt(3, 20, tail=5)
    chain = shared.client.chain(tokens)
    with pytest.raises(BufferMismatch, match="2 blocks, the chain has 3"):
        await shared.client.store(tokens, kv_of(2))
    with pytest.raises(BufferMismatch, match="2 blocks, the chain has 3"):
        await shared.client.begin_store(tokens, kv_of(2))
    with pytest.raises(BufferMismatch, match="2 blocks, the chain has 3"):
        shared.client.load(chain, empty_kv(2))
    ticket = await shared.client.offer(tokens, deadline_s=0.1)
    with pytest.raises(BufferMismatch, match="3 blocks, the chain has 4"):
        await shared.client.send(ticket, kv_of(3))
    with pytest.raises(BufferMismatch, match="3 blocks, the chain has 4"):
        shared.client.receive(ticket, empty_kv(3), tokens)
    with pytest.raises(BufferMismatch):
        buffers.contiguous(np.zeros(LAYOUT.block_bytes - 1, np.uint8), LAYOUT)
    await still_serves(shared, 21)


async def test_block_table_that_ends_early(shared: Shared) -> None:
    """A paged buffer whose last block lacks pages fails the store, and the lease is given back at once."""
    pages = 2 * LAYOUT.pages_per_block
    pools = [[np.zeros((pages, LAYOUT.group.page_bytes), np.uint8)] * 2 for _ in range(LAYOUT.layers)]
    short = buffers.paged(pools, range(pages - 1), LAYOUT)
    tokens = prompt(2, 22)
    with pytest.raises(BufferMismatch, match="3 pages in the block table"):
        await shared.client.store(tokens, short)
    assert (await shared.client.match(tokens)).blocks == 0
    await still_serves(shared, 23)


async def test_load_into_a_block_table_that_ends_early(shared: Shared) -> None:
    """A copy that fails ends the load with its own error, well before the deadline."""
    tokens = prompt(2, 24)
    await shared.client.store(tokens, kv_of(2))
    pages = 2 * LAYOUT.pages_per_block
    pools = [[np.zeros((pages, LAYOUT.group.page_bytes), np.uint8)] * 2 for _ in range(LAYOUT.layers)]
    load = shared.client.load(shared.client.chain(tokens), buffers.paged(pools, range(pages - 1), LAYOUT))
    with pytest.raises(BufferMismatch, match="3 pages in the block table"):
        await load.result()
    with pytest.raises(BufferMismatch):
        await load.wait_layer(0)
    await still_serves(shared, 25)


async def test_buffer_that_is_read_only(shared: Shared) -> None:
    """Nothing is loaded or received into read-only memory; storing from it is fine."""
    tokens = prompt(2, 26, tail=3)
    frozen = random_blocks(LAYOUT, 3)
    frozen.flags.writeable = False
    kv = buffers.contiguous(frozen, LAYOUT)
    assert (await shared.client.store(tokens, kv)).stored == 2
    with pytest.raises(BufferMismatch, match="read-only"):
        shared.client.load(shared.client.chain(tokens), kv)
    ticket = await shared.client.offer(tokens, deadline_s=0.1)
    with pytest.raises(BufferMismatch, match="read-only"):
        shared.client.receive(ticket, kv, tokens)
    await still_serves(shared, 27)


async def test_buffer_that_is_not_contiguous() -> None:
    """Rows with gaps within them are refused; there is no silent copy."""
    with pytest.raises(BufferMismatch, match="not contiguous"):
        buffers.contiguous(np.zeros((2, LAYOUT.block_bytes * 2), np.uint8)[:, ::2], LAYOUT)


async def test_buffer_on_the_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device memory is refused where there is no CuPy, and says which extra is missing."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BufferMismatch, match="cu12"):
        buffers.contiguous(_OnDevice(2), LAYOUT)


# ---- tokens ------------------------------------------------------------------------------------------------------


BAD_TOKENS: dict[str, Any] = {
    "negative": [1, 2, -1],
    "33 bits": [1, 2**32],
    "65 bits": [1, 2**64],
    "floats": [1.0, 2.5],
    "float array": np.zeros(64, np.float32),
    "words": ["the", "cat"],
    "none": [],
    "no sequence": 7,
    "two axes": np.zeros((2, 64), np.uint32),
    "ragged": [[1], [1, 2]],
    "negative array": np.full(64, -1, np.int64),
}


@pytest.mark.parametrize("tokens", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_tokens_that_are_none(shared: Shared, tokens: Any) -> None:
    """Every call that takes a prompt refuses what is no sequence of 32-bit tokens."""
    client, kv = shared.client, empty_kv(2)
    ticket = await client.offer(prompt(1, 30), deadline_s=0.1)
    for call in (
        lambda: client.match(tokens),
        lambda: client.match(tokens, hold_s=1),
        lambda: client.pin(tokens),
        lambda: client.store(tokens, kv),
        lambda: client.begin_store(tokens, kv),
        lambda: client.offer(tokens),
        lambda: client.send(ticket, kv, tokens),
        lambda: client.start_match(tokens).wait(),
    ):
        with pytest.raises(InvalidInput):
            await call()
    with pytest.raises(InvalidInput):
        client.receive(ticket, kv, tokens)
    await shared.cluster.clean(shared.node)


async def test_prompt_shorter_than_a_block(shared: Shared) -> None:
    """There is nothing to match, store or load, and that is no error."""
    tokens: Tokens = [1, 2, 3]
    assert (await shared.client.match(tokens, hold_s=1)).blocks == 0
    stored = await shared.client.store(tokens, kv_of(1))
    assert (stored.stored, stored.present, stored.refused) == (0, 0, 0)
    result = await shared.client.load(shared.client.chain(tokens), empty_kv(1)).result()
    assert (result.blocks, result.missing) == (0, ())
    await still_serves(shared, 31)


# ---- sizes -------------------------------------------------------------------------------------------------------


async def published(client: AsyncClient, chain: Chain, blocks: int) -> bool:
    """Whether the control plane knows so many of a chain's blocks."""
    return len((await client.match(chain)).locations) == blocks


async def test_a_million_tokens_and_more(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million tokens are matched in one call; a longer chain is matched, held, stored and loaded in two."""
    tokens = prompt(KEYS_PER_MESSAGE_MAX + 10, 40)
    client = await shared.cluster.client(shared.node, TINY)
    chain = client.chain(tokens)
    source = random_blocks(TINY, len(chain), 40)
    stored = await client.store(tokens, buffers.contiguous(source, TINY))
    assert stored.stored == len(chain)
    await eventually(lambda: published(client, chain, len(chain)))

    calls: list[str] = []
    for name in ("call", "call_control"):
        asked = getattr(client._link, name)

        async def counted(*args: Any, asked: Any = asked, name: str = name, **options: Any) -> Any:
            calls.append(name)
            return await asked(*args, **options)

        monkeypatch.setattr(client._link, name, counted)
    match = await client.match(tokens[: MILLION_BLOCKS * 64])
    assert (match.blocks, match.tokens, calls) == (MILLION_BLOCKS, 1_000_000, ["call_control"])
    calls.clear()
    assert (await client.match(tokens)).blocks == len(chain)
    assert calls.count("call_control") == 2
    held = await client.pin(tokens)
    assert held.blocks == len(chain)
    await held.release()

    target = np.zeros_like(source)
    result = await client.load(match, buffers.contiguous(target, TINY), first_block=MILLION_BLOCKS - 100).result()
    assert result.blocks == MILLION_BLOCKS
    assert np.array_equal(source[MILLION_BLOCKS - 100 : MILLION_BLOCKS], target[MILLION_BLOCKS - 100 : MILLION_BLOCKS])
    target[:] = 0
    result = await client.load(chain, buffers.contiguous(target, TINY)).result()
    assert result.blocks == len(chain)
    assert np.array_equal(source, target)
    await still_serves(shared, 41)


async def test_more_keys_than_a_message_may_have(shared: Shared) -> None:
    """A client that does not split is refused by node and control plane alike."""
    keys = b"".join(i.to_bytes(16, "little") for i in range(KEYS_PER_MESSAGE_MAX + 1))
    answers = await raw_calls(shared.client, shared.client.namespace.id, keys)
    assert {name: type(error) for name, error in answers.items()} == dict.fromkeys(answers, TooLarge)
    link = shared.client._link
    assert link.control is not None
    request = control_pb2.MatchRequest(caller=link.caller, namespace_id=link.namespace.id, shard_count=1, keys=keys)
    with pytest.raises(TooLarge):
        await link.call_control(link.control.Match, request, 1000)
    await still_serves(shared, 42)


async def test_request_larger_than_the_tier(built: Cluster) -> None:
    """The prefix that fits is stored, the rest refused with a retry-after; a block that never fits is TooLarge."""
    node = await built.node("bounded", compute_kind="loopback", **SMALL)
    client = await built.client(node)
    tokens, source = prompt(SLOTS + 4, 43), random_blocks(LAYOUT, SLOTS + 4, 43)
    stored = await client.store(tokens, buffers.contiguous(source, LAYOUT))
    assert (stored.stored, stored.refused) == (SLOTS, 4)
    assert stored.retry_after_s > 0
    target = np.zeros_like(source)
    match = await client.match(tokens)
    result = await client.load(match, buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == SLOTS
    assert np.array_equal(target[:SLOTS], source[:SLOTS])

    huge = Layout.dense(layers=64, kv_heads=8, head_dim=64)
    assert huge.block_bytes > 2 * 1024 * 1024
    giant = await built.client(node, huge)
    with pytest.raises(TooLarge):
        await giant.store(prompt(1, 44), empty_kv(1, huge))
    ticket = await giant.offer(prompt(1, 44), deadline_s=0.1)
    with pytest.raises(TooLarge):
        await giant.send(ticket, empty_kv(1, huge))
    await built.clean(node)
