"""The network between two hosts goes down, or carries one direction only: real processes in network namespaces."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from kvbench import testbed
from kvbench.topology import COMPUTE, pair
from kvstore.client import AsyncClient, buffers
from kvstore.errors import NodeUnavailable
from kvstore.pb import node_pb2, types_pb2
from tests.cluster import LAYOUT, Cluster, Running, cluster
from tests.faults.scenes import NARROW, NODE, Stored, outcomes, store, timed
from tests.waiting import eventually

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
    pytest.mark.asyncio(loop_scope="module"),
]

LOST_S = 1.5
BACK_S = 5.0


@dataclass(frozen=True, slots=True)
class Hosts:
    """A storing node on the left host and a reading one on the right."""

    bed: testbed.Testbed
    cluster: Cluster
    owner: Running
    writer: AsyncClient
    node: Running
    reader: AsyncClient

    async def reads(self, stored: Stored) -> bool:
        result, _ = await stored.load(self.reader)
        return result.blocks == len(stored.chain)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    async with testbed.testbed(pair()) as made, cluster(tmp_path_factory.mktemp("hosts")) as built:
        nodes = []
        for host, options in zip(made.topology.hosts, (NODE, NARROW), strict=True):
            nic = host.nic(COMPUTE)
            network = {"listen": f"{nic.address}:0", "compute_device": nic.device}
            place = {"prefix": made.prefix(host), "flags": ("--insecure",)}
            nodes.append(await built.node(host.name, **place, **network, **options))
        owner, node = nodes
        yield Hosts(made, built, owner, await built.client(owner), node, await built.client(node))


@pytest.mark.parametrize("fault", ["down", "owner is not heard", "reader is not heard"])
async def test_link_fails_during_a_load(hosts: Hosts, fault: str) -> None:
    """The load ends typed within the progress deadline, both nodes are clean, and with the link back the next load
    is whole, over a new connection."""
    stored = await store(hosts.writer, 32, seed=sum(map(ord, fault)))
    await eventually(lambda: hosts.reads(stored), BACK_S)
    target = stored.target()
    gate = stored.gate(target)
    load = hosts.reader.load(stored.match, gate)
    await gate.reached()
    left, right = hosts.bed.topology.hosts
    if fault == "down":
        await hosts.bed.link_down(left, COMPUTE)
    else:
        sender, receiver = (left, right) if fault.startswith("owner") else (right, left)
        await hosts.bed.drop(sender, receiver, COMPUTE)
    gate.open()
    result, took_s = await timed(load.result())
    assert took_s < LOST_S
    assert outcomes(result) == {"NODE_LOST"}
    stored.check(result, target)
    await hosts.cluster.clean(hosts.node, deadline_s=2)

    unreachable, took_s = await timed(stored.load(hosts.reader))
    assert outcomes(unreachable[0]) == {"NODE_LOST"}
    assert took_s < LOST_S
    ticket = await hosts.writer.offer(stored.chain, deadline_s=1)
    receive = hosts.reader.receive(ticket, buffers.contiguous(target, LAYOUT), stored.chain, deadline_s=20)
    with pytest.raises(NodeUnavailable):
        await asyncio.wait_for(receive.result(), LOST_S)
    # The owner is never told: that is lost too. It hears nothing any more, and lets go before the load's deadline.
    await hosts.cluster.clean(hosts.owner, deadline_s=4)
    for host in hosts.bed.topology.hosts:
        await hosts.bed.link_up(host, COMPUTE)
    await eventually(lambda: hosts.reads(stored), BACK_S)
    await hosts.cluster.clean(hosts.owner)
    await hosts.cluster.clean(hosts.node)


async def test_ticket_of_a_host_that_does_not_answer(hosts: Hosts) -> None:
    """A receiver may wait long for its sender, but not for the way to it: that is a bound of its own."""
    stored = await store(hosts.writer, 2, seed=1)
    address = "10.77.2.9"
    await hosts.bed.silent_neighbour(hosts.bed.topology.host("right"), COMPUTE, address)
    node = types_pb2.NodeAddress(node_id="silent", grpc=f"{address}:7000")
    handoff = node_pb2.HandoffTicket(tickets=[bytes(16)], node=node)
    ticket = base64.urlsafe_b64encode(handoff.SerializeToString()).decode()
    receive = hosts.reader.receive(ticket, buffers.contiguous(stored.target(), LAYOUT), stored.chain, deadline_s=20)
    with pytest.raises(NodeUnavailable):
        await asyncio.wait_for(receive.result(), LOST_S)
    await hosts.cluster.clean(hosts.node)
