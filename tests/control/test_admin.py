"""What operators see, with a node that answers and one that does not."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore import errors
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller
from kvstore.rpc.status import from_rpc
from tests.answering import answering
from tests.contracts.index import key
from tests.control.conftest import DEADLINE_S, NAMESPACE, FakeNode, match
from tests.waiting import eventually

KEYS = [key(i) for i in range(6)]
CALLER = caller("test")


class Usage(node_pb2_grpc.NodeServicer):
    """A node that can say how full it is, and what came in over its storage NIC; None: it has none."""

    def __init__(self, moved_bytes: int | None = None) -> None:
        self.moved_bytes = moved_bytes

    async def Usage(self, request: node_pb2.UsageRequest, context: Any) -> node_pb2.UsageReply:
        lanes = [
            types_pb2.LaneLoad(lane="storage-in", moved_bytes=self.moved_bytes),
            types_pb2.LaneLoad(lane="compute-in", moved_bytes=10**9),
        ]
        return node_pb2.UsageReply(counters={"loads": 3}, lanes=lanes[-1 if self.moved_bytes is None else 0 :])


@pytest.fixture
async def node_address(tmp_path: Path) -> AsyncIterator[str]:
    async with answering(tmp_path, Usage()) as address:
        yield address


async def test_stats_count_and_ask_the_nodes(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, node_address: str
) -> None:
    """Counts are those of the index and the matches; a node that cannot be reached is reported, not raised."""
    near, far = FakeNode(control, node_id="near", grpc=node_address), FakeNode(control, node_id="far")
    for node in (near, far):
        await node.register()
    await near.add(KEYS)
    await far.add(KEYS[:2])
    await match(control, KEYS)
    await match(control, [key("unknown")])
    stats = await admin.Stats(admin_pb2.StatsRequest(caller=CALLER), timeout=DEADLINE_S)
    assert (stats.indexed_blocks, stats.indexed_locations) == (6, 8)
    assert (stats.matches, stats.asked_blocks, stats.matched_blocks) == (2, 7, 6)
    usages = {usage.node_id: usage for usage in stats.nodes}
    assert (usages["near"].reachable, usages["near"].usage.counters["loads"]) == (True, 3)
    assert (usages["far"].reachable, usages["far"].error != "") == (False, True)


async def test_nodes_are_listed_with_their_state(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, node: FakeNode
) -> None:
    """Address, roles, liveness and how much each holds."""
    await node.register()
    await node.add(KEYS)
    reply = await admin.Nodes(admin_pb2.NodesRequest(caller=CALLER), timeout=DEADLINE_S)
    (state,) = reply.nodes
    assert (state.address.node_id, state.address.incarnation, list(state.roles)) == ("a", 1, ["prefill"])
    assert (state.alive, state.locations) == (True, 6)
    assert state.silent_ms < 10_000


async def test_blocks_of_a_prefix(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, node: FakeNode
) -> None:
    """One entry per key, also where nothing is known, and behind a gap; stale incarnations are not alive."""
    await node.register()
    await node.add([KEYS[0], KEYS[2]], rank=1, count=2)
    restarted = FakeNode(control, incarnation=2)
    await restarted.register()
    await restarted.add(KEYS[2:3])
    request = admin_pb2.PrefixBlocksRequest(caller=CALLER, namespace_id=NAMESPACE, keys=b"".join(KEYS[:3]))
    reply = await admin.PrefixBlocks(request, timeout=DEADLINE_S)
    assert [block.key for block in reply.blocks] == KEYS[:3]
    assert [len(block.locations) for block in reply.blocks] == [1, 0, 2]
    stale = reply.blocks[0].locations[0]
    assert (stale.node_id, stale.alive, stale.tier, stale.shard.rank, stale.shard.count) == (
        "",
        False,
        types_pb2.TIER_DRAM,
        1,
        2,
    )
    assert [(place.node_id, place.alive) for place in reply.blocks[2].locations] == [("", False), ("a", True)]
    assert 0 < reply.blocks[2].locations[1].remaining_ms <= 60_000


async def test_long_gaps_end_no_listing(admin: admin_pb2_grpc.AdminStub, node: FakeNode) -> None:
    """What lies far behind blocks that nobody has is still listed."""
    await node.register()
    keys = [key(("far", i)) for i in range(2000)]
    await node.add(keys[-1:])
    request = admin_pb2.PrefixBlocksRequest(caller=CALLER, namespace_id=NAMESPACE, keys=b"".join(keys))
    reply = await admin.PrefixBlocks(request, timeout=DEADLINE_S)
    assert [len(block.locations) for block in reply.blocks] == [0] * 1999 + [1]


async def test_what_has_expired_is_not_looked_for_on_a_silent_node(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub
) -> None:
    """While its time lasts a block is on the node that does not answer; then nobody knows what became of it."""
    node = FakeNode(control)
    await node.register()
    await node.add(KEYS[:1])
    node.remaining_ms = 1
    await node.add(KEYS[1:2])
    request = admin_pb2.ExplainPrefixRequest(caller=CALLER, keys=b"".join(KEYS[:2]))

    async def over() -> admin_pb2.ExplainPrefixReply | None:
        reply = await admin.Explain(request, timeout=DEADLINE_S)
        return None if any(place.remaining_ms for place in reply.blocks[1].locations) else reply

    reply = await eventually(over)
    assert [block.verdict for block in reply.blocks] == ["node_down", "unknown"]


async def test_an_explanation_is_bounded(admin: admin_pb2_grpc.AdminStub) -> None:
    """By its keys times their shards."""
    keys = bytes(16 * (KEYS_PER_MESSAGE_MAX // 2 + 1))
    request = admin_pb2.ExplainPrefixRequest(caller=CALLER, keys=keys, shard_count=2)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admin.Explain(request, timeout=DEADLINE_S)
    assert type(from_rpc(failed.value)) is errors.TooLarge


async def test_bad_input_is_refused(admin: admin_pb2_grpc.AdminStub) -> None:
    """Checked as a match is."""
    bad = admin_pb2.PrefixBlocksRequest(caller=CALLER, namespace_id=NAMESPACE, keys=b"odd")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admin.PrefixBlocks(bad, timeout=DEADLINE_S)
    assert type(from_rpc(failed.value)) is errors.InvalidInput
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admin.Nodes(admin_pb2.NodesRequest(), timeout=DEADLINE_S)
    assert type(from_rpc(failed.value)) is errors.VersionMismatch


@pytest.mark.parametrize(
    ("moved", "nics", "max_to_avg"), [([100, 300, None], 2, 1.5), ([0, 0], 2, 0.0), ([None], 0, 0.0), ([7], 1, 1.0)]
)
async def test_how_evenly_storage_nics_carry(
    control: control_pb2_grpc.ControlStub,
    admin: admin_pb2_grpc.AdminStub,
    tmp_path: Path,
    moved: list[int | None],
    nics: int,
    max_to_avg: float,
) -> None:
    """The busiest over the average, of the nodes that have one and answer; a node that does not answer is none."""
    await FakeNode(control, node_id="gone").register()
    async with AsyncExitStack() as stack:
        for number, moved_bytes in enumerate(moved):
            address = await stack.enter_async_context(answering(tmp_path, Usage(moved_bytes), str(number)))
            await FakeNode(control, node_id=f"n{number}", grpc=address).register()
        stats = await admin.Stats(admin_pb2.StatsRequest(caller=CALLER), timeout=DEADLINE_S)
    assert (stats.storage_nics, stats.storage_nic_max_to_avg) == (nics, max_to_avg)


class Refilled(node_pb2_grpc.NodeServicer):
    """A node that gets blocks again while it is purged, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.asked = 0

    async def Purge(self, request: node_pb2.PurgeRequest, context: Any) -> node_pb2.PurgeReply:
        self.asked += 1
        left = self.asked <= self.times or request.dry_run
        tiers = [node_pb2.PurgedTier(tier=types_pb2.TIER_DRAM, copies=2, bytes=10)] if left else []
        return node_pb2.PurgeReply(blocks=2 * left, tiers=tiers, pinned_blocks=5)


@pytest.mark.parametrize(("times", "dry_run", "asked"), [(0, False, 1), (2, False, 3), (99, False, 4), (9, True, 1)])
async def test_nodes_are_asked_until_nothing_is_left(
    control: control_pb2_grpc.ControlStub,
    admin: admin_pb2_grpc.AdminStub,
    tmp_path: Path,
    times: int,
    dry_run: bool,
    asked: int,
) -> None:
    """What went is added up, what stays is counted once; never for ever, and once where it is only counted."""
    node = Refilled(times)
    request = admin_pb2.PurgeStoredRequest(caller=CALLER, tenant="a", dry_run=dry_run)
    async with answering(tmp_path, node) as address:
        await FakeNode(control, node_id="near", grpc=address).register()
        (purged,) = (await admin.Purge(request, timeout=DEADLINE_S)).nodes
    went = 1 if dry_run else min(times, asked)
    assert (node.asked, purged.purged.blocks, purged.purged.pinned_blocks) == (asked, 2 * went, 5)
    assert [(each.copies, each.bytes) for each in purged.purged.tiers] == [(2 * went, 10 * went)] * (went > 0)
