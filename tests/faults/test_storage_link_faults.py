"""A storage NIC's link goes down: loads go on over others' storage NICs. Real processes in network namespaces."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import pytest_asyncio

from kvbench import testbed
from kvbench.topology import CONTROL, STORAGE, Host, Rates
from kvbench.topology import cluster as hosts_of
from kvstore.client import AsyncClient, LoadResult, Match, buffers
from kvstore.pb import types_pb2
from tests.cluster import LAYOUT, Cluster, Running, cluster
from tests.faults.scenes import NARROW, NODE, Stored, outcomes, store, timed
from tests.waiting import eventually

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
    pytest.mark.asyncio(loop_scope="module"),
]

LOST_S = 2.0
BACK_S = 10.0
BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Hosts:
    """A storage node, a reader and a helper. gRPC has a network of its own, but for a second storage node, which has
    one NIC alone; the helper reaches the reader over the compute network. No control plane: what is loaded is named by
    hand, with the helper. writer, apart: clients of the storage nodes."""

    bed: testbed.Testbed
    cluster: Cluster
    nodes: dict[str, Running]
    writer: AsyncClient
    apart: AsyncClient
    reader: AsyncClient
    helper: types_pb2.NodeAddress

    def host(self, name: str) -> Host:
        return self.bed.topology.host(name)

    def match(self, stored: Stored) -> Match:
        match = stored.match
        return replace(match, locations=replace(match.locations, helpers=(types_pb2.Helper(node=self.helper),)))

    async def load(self, stored: Stored) -> LoadResult:
        """What has come must be right."""
        target = stored.target()
        load = self.reader.load(self.match(stored), buffers.contiguous(target, LAYOUT), deadline_s=10)
        result = await load.result()
        stored.check(result, target)
        return result

    async def loads_over_both(self, stored: Stored) -> bool:
        """Whether all of it comes, over both storage NICs."""
        result = await self.load(stored)
        return result.blocks == BLOCKS and {source.route for source in result.sources} == {"direct", "relay"}

    async def clean(self) -> None:
        for node in self.nodes.values():
            await self.cluster.clean(node, BACK_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["ucx", "tcp"])
async def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    """Once for each fabric between hosts."""
    topology = hosts_of(1, 1, Rates(snic_mbit=200))
    async with testbed.testbed(topology) as made, cluster(tmp_path_factory.mktemp("hosts")) as built:

        def place(name: str, network: str = CONTROL) -> dict[str, object]:
            host = topology.host(name)
            listen = f"{host.nic(network).address}:0"
            return {"listen": listen, "prefix": made.prefix(host), "flags": ("--insecure",)}

        compute, both = {"compute_kind": request.param}, {"compute_kind": request.param, "storage_kind": request.param}
        nics = {"compute_device": "cnic0", "storage_device": "snic0", **both}
        options = {
            "storage": {**NODE, "roles": "storage", "compute_device": "snic0", **compute},
            "prefill-1": {**NARROW, **nics, "roles": "prefill"},
            "decode-1": {**NODE, **nics, "roles": "decode", "piece_bytes": "128KiB"},
        }
        nodes = {
            name: await built.node(name, **place(name), **given)  # type: ignore[arg-type]
            for name, given in options.items()
        }
        writer, reader, helper = [await built.client(node) for node in nodes.values()]
        nodes["apart"] = await built.node("apart", **place("storage", STORAGE), **options["storage"])  # type: ignore[arg-type]
        apart = await built.client(nodes["apart"])
        yield Hosts(made, built, nodes, writer, apart, reader, helper._link.node)


@pytest.mark.parametrize("whose", ["prefill-1", "decode-1"])
async def test_a_storage_link_fails_during_a_load(hosts: Hosts, whose: str) -> None:
    """The reader's own or the helper's: what it would have brought comes over the other one, and the load is whole. So
    is one that begins while the link is down; with the link back both NICs are used again."""
    stored = await store(hosts.writer, BLOCKS, seed=sum(map(ord, whose)))
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)
    target = stored.target()
    gate = stored.gate(target)
    load = hosts.reader.load(hosts.match(stored), gate, deadline_s=10)
    await gate.reached()
    await hosts.bed.link_down(hosts.host(whose), STORAGE)
    try:
        gate.open()
        result, took_s = await timed(load.result())
        assert (result.blocks, result.missing) == (BLOCKS, ())
        assert np.array_equal(target, stored.source)
        assert took_s < LOST_S
        result, took_s = await timed(hosts.load(stored))
        assert (result.blocks, result.missing) == (BLOCKS, ())
        assert took_s < LOST_S
        other = {"prefill-1": "relay", "decode-1": "direct"}[whose]
        assert {source.route for source in result.sources} == {other}
    finally:
        await hosts.bed.link_up(hosts.host(whose), STORAGE)
    await hosts.clean()
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)


async def test_a_load_that_cannot_even_ask_the_storage_node(hosts: Hosts) -> None:
    """Its own storage NIC is the only way to it, and that is down: helpers ask in its place."""
    stored = await store(hosts.apart, BLOCKS, seed=4)
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)
    await hosts.bed.link_down(hosts.host("prefill-1"), STORAGE)
    try:
        result, took_s = await timed(hosts.load(stored))
        assert (result.blocks, result.missing) == (BLOCKS, ())
        assert {source.route for source in result.sources} == {"relay"}
        assert took_s < 2 * LOST_S
    finally:
        await hosts.bed.link_up(hosts.host("prefill-1"), STORAGE)
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)
    await hosts.clean()


async def test_the_storage_nodes_link_fails_during_a_load(hosts: Hosts) -> None:
    """Nobody can reach it: what has not come is lost, and is told so in time; nobody holds anything then. With the link
    back the next load is whole."""
    stored = await store(hosts.writer, BLOCKS, seed=3)
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)
    gate = stored.gate(stored.target())
    load = hosts.reader.load(hosts.match(stored), gate, deadline_s=10)
    await gate.reached()
    await hosts.bed.link_down(hosts.host("storage"), STORAGE)
    try:
        gate.open()
        result, took_s = await timed(load.result())
        assert outcomes(result) == {"NODE_LOST"}
        assert took_s < LOST_S
        await hosts.clean()
    finally:
        await hosts.bed.link_up(hosts.host("storage"), STORAGE)
    await eventually(lambda: hosts.loads_over_both(stored), BACK_S)
    await hosts.clean()
