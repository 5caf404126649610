"""Tenants' quotas over real nodes: told to all, kept over restarts, and what clients see of them."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.blocks.state import Tier
from kvstore.client import AsyncClient, buffers
from kvstore.client.storing import StoreResult
from kvstore.errors import InvalidInput
from kvstore.node.app import NodeServer
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.status import from_rpc
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, tokens
from tests.waiting import eventually

BLOCKS = 4
CALLER = caller("test")


async def change(control: str, tenant: str, *, remove: bool = False, **fields: int) -> admin_pb2.AdminSetRulesReply:
    request = admin_pb2.AdminSetQuotaRequest(
        caller=CALLER, tenant=tenant, quota=types_pb2.Quota(**fields), remove=remove
    )
    async with open_channel(control) as channel:
        try:
            return await admin_pb2_grpc.AdminStub(channel).SetQuota(request, timeout=5)
        except grpc.RpcError as error:
            raise from_rpc(error) from None


async def listed(control: str, tenant: str = "") -> admin_pb2.AdminGetQuotasReply:
    async with open_channel(control) as channel:
        request = admin_pb2.AdminGetQuotasRequest(caller=CALLER, tenant=tenant)
        return await admin_pb2_grpc.AdminStub(channel).GetQuotas(request, timeout=5)


async def store(client: AsyncClient, seed: int = 0) -> StoreResult:
    source = random_blocks(LAYOUT, BLOCKS, seed)
    return await client.store(tokens(BLOCKS, seed), buffers.contiguous(source, LAYOUT))


def quotas(node: NodeServer) -> Any:
    return node.catalog.quotas()[0]


async def test_a_store_beyond_the_quota(here: Site) -> None:
    """What fits is stored, the rest is told when to come again; the next prompt takes the place of the first."""
    control = (await here.control(heartbeat_ms=50)).address
    node = await here.node(control=control)
    client = await here.client(node)
    reply = await change(control, "default", dram_bytes=3 * LAYOUT.block_bytes)
    await eventually(lambda: quotas(node) == {"default": {Tier.DRAM: 3 * LAYOUT.block_bytes}})
    assert reply.book.quotas["default"].dram_bytes == 3 * LAYOUT.block_bytes
    first = await store(client)
    assert (first.stored, first.refused) == (3, 1)
    assert first.retry_after_s > 0
    assert (await store(client, 1)).stored == 3
    assert node.catalog.block_count == 3
    (usage,) = node.service.usage().tenants
    assert (usage.tenant, usage.dram_bytes, usage.quota.dram_bytes) == ("default", *[3 * LAYOUT.block_bytes] * 2)
    assert not usage.quota.HasField("nvme_bytes")
    chain = client.chain(tokens(BLOCKS))
    async with open_channel(control) as channel:
        asked = admin_pb2.ExplainPrefixRequest(caller=CALLER, keys=chain.packed)
        explained = await admin_pb2_grpc.AdminStub(channel).Explain(asked, timeout=5)
    assert [block.verdict for block in explained.blocks] == ["evicted"] * 3 + ["over_quota"]
    await change(control, "default", remove=True)
    await eventually(lambda: quotas(node) == {})
    assert (await store(client)).refused == 0


async def test_quotas_outlast_the_control_plane(here: Site, tmp_path: Path) -> None:
    """Another one over the same index has them, and tells nodes that come later; tiers are changed one by one."""
    control = await here.control(heartbeat_ms=50)
    await change(control.address, "acme", dram_bytes=5)
    await change(control.address, "acme", nvme_bytes=0)
    await change(control.address, "other", nvme_bytes=7)
    await control.stop()
    again = await here.control(heartbeat_ms=50)
    node = await here.node(control=again.address)
    await eventually(lambda: quotas(node) == {"acme": {Tier.DRAM: 5, Tier.NVME: 0}, "other": {Tier.NVME: 7}})
    known = await listed(again.address, "acme")
    assert dict(known.quotas) == {"acme": types_pb2.Quota(dram_bytes=5, nvme_bytes=0)}
    assert [each.tenant for each in known.nodes[0].tenants] == ["acme"]
    assert set((await listed(again.address)).quotas) == {"acme", "other"}


async def test_what_is_no_quota_changes_nothing(here: Site) -> None:
    """Nothing to set, nobody's, too much, or none to remove."""
    control = (await here.control()).address
    for tenant, fields in (("acme", {}), ("", {"dram_bytes": 1}), ("acme", {"dram_bytes": 2**63})):
        with pytest.raises(InvalidInput):
            await change(control, tenant, **fields)
    with pytest.raises(InvalidInput):
        await change(control, "acme", remove=True)
    assert not (await listed(control)).quotas
