"""Operators' pins over several nodes: all of them, or none."""

import grpc
import pytest

from kvstore.client import buffers
from kvstore.errors import BlocksMissing, Refused, TooLarge
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, tokens

BLOCKS = 3
BYTES = BLOCKS * LAYOUT.block_bytes
HOUR_MS = 3_600_000


async def stored(here: Site, control: str, *budgets: int, seed: int = 0) -> bytes:
    """The keys of a prompt, on one node for each budget."""
    source = random_blocks(LAYOUT, BLOCKS, seed)
    keys: tuple[bytes, ...] = ()
    for budget in budgets:
        node = await here.node(control=control, operator_pinned_bytes_max=budget)
        client = await here.client(node)
        await client.store(tokens(BLOCKS, seed), buffers.contiguous(source.copy(), LAYOUT))
        keys = (await client.match(tokens(BLOCKS, seed))).chain.keys
    return b"".join(keys)


async def pin(control: str, keys: bytes, for_ms: int = HOUR_MS) -> admin_pb2.PinPrefixReply:
    request = admin_pb2.PinPrefixRequest(caller=caller("test"), keys=keys, for_ms=for_ms)
    async with open_channel(control) as channel:
        try:
            return await admin_pb2_grpc.AdminStub(channel).Pin(request, timeout=5)
        except grpc.RpcError as error:
            raise from_rpc(error) from None


def pinned_bytes(here: Site) -> list[int]:
    return [node.catalog.operator_pinned_bytes[0] for node in here.nodes]


async def test_a_node_that_refuses_keeps_all_from_pinning(here: Site) -> None:
    """What was pinned elsewhere is let go, and the caller is told by whom it was refused, and until when."""
    control = (await here.control()).address
    keys = await stored(here, control, BYTES, BYTES - 1)
    with pytest.raises(TooLarge, match="n1: "):
        await pin(control, keys)
    assert pinned_bytes(here) == [0, 0]
    await pin(control, keys[:16], 60_000)
    with pytest.raises(Refused) as refused:
        await pin(control, keys[16:])
    assert 50 < refused.value.retry_after_s <= 60
    assert pinned_bytes(here) == [LAYOUT.block_bytes] * 2


async def test_a_node_that_does_not_answer_is_named(here: Site) -> None:
    """The others pin; and it is no reason to believe that the prefix is nowhere."""
    control = (await here.control()).address
    keys = await stored(here, control, BYTES, BYTES)
    await here.nodes[1].stop()
    (first, second) = (await pin(control, keys)).nodes
    assert (first.error, first.pin.bytes) == ("", BYTES)
    assert second.error
    assert not second.HasField("pin")
    with pytest.raises(BlocksMissing, match="n1"):
        await pin(control, bytes(16))
