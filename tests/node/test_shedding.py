"""Copies that are too many: they go, but not what was stored where it is, is held, or is needed by what hangs on it."""

from collections.abc import Sequence

import grpc
import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.node.app import NodeServer
from kvstore.node.catalog import Lifetime
from tests.cluster import LAYOUT
from tests.inprocess import Site, at_rest, tokens
from tests.node.small_catalog import SHARD, TTL_NS, SmallCatalog, key, namespace
from tests.node.test_replicas import BLOCKS, SOURCE, cluster_of, copies, counters, held, kv_of, settled, writer_of
from tests.waiting import eventually


def copied(small: SmallCatalog, chain: str) -> None:
    """The chain comes as copies of another node's blocks."""
    lifetimes = {key(name): Lifetime(0, small.now_ns + TTL_NS) for name in chain}
    reservation = small.catalog.reserve(
        namespace("one"), SHARD, list(lifetimes), 0, "session:w", small.now_ns, lifetimes=lifetimes
    )
    small.commit(reservation)


def shed(small: SmallCatalog, names: str) -> list[str]:
    gone = small.catalog.shed(namespace("one"), SHARD, [key(name) for name in names])
    assert small.catalog.violations() == []
    return [name for name in names if key(name) in gone]


def present(small: SmallCatalog, names: str) -> list[bool]:
    standings = small.catalog.standings(namespace("one"), SHARD, [key(name) for name in names], small.now_ns)
    return [standing is not None for standing in standings]


def test_what_came_as_copies_goes() -> None:
    """A whole chain at once, whatever the order in which it is named; what is not here is not counted."""
    small = SmallCatalog()
    copied(small, "abc")
    assert shed(small, "bxac") == ["b", "a", "c"]
    assert present(small, "abc") == [False] * 3
    assert small.catalog.usage().counters["shed_blocks"] == 3


def test_what_was_stored_here_stays() -> None:
    """Before the copies came, or after."""
    small = SmallCatalog()
    small.store("a")
    copied(small, "abc")
    assert shed(small, "a") == []
    small.store("ab")
    assert shed(small, "abc") == ["c"]
    assert present(small, "abc") == [True, True, False]


def test_a_reader_makes_no_copy_his_own() -> None:
    """Else one that is read would stay for as long as it is; but while he holds it, it stays."""
    small = SmallCatalog()
    copied(small, "a")
    pins = small.pin("a")
    assert shed(small, "a") == []
    small.catalog.unpin(pins.pin_id)
    assert shed(small, "a") == ["a"]


def test_nothing_goes_that_something_here_hangs_on() -> None:
    """A chain never gets a hole by it."""
    small = SmallCatalog()
    copied(small, "ab")
    assert shed(small, "a") == []
    assert shed(small, "b") == ["b"]
    assert shed(small, "a") == ["a"]


def test_a_copy_that_is_being_written_again_stays() -> None:
    """Its slots are another's; and one that is on its way to disk is held."""
    small = SmallCatalog(nvme_files=(4,), spill_from_hits=1)
    copied(small, "a")
    (copy,) = small.catalog.next_spills(1, small.now_ns)
    assert shed(small, "a") == []
    small.catalog.abandon_copy(copy)
    assert shed(small, "a") == ["a"]


@pytest.fixture(autouse=True)
def census_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.census._REST_S", 0.05)


async def silent(node: NodeServer, others: Sequence[NodeServer]) -> None:
    """Lets a node be silent for so long that it passes for lost, and come back with all that it has."""
    publisher = node._publisher
    assert publisher is not None
    came = [counters(other)["copies_made"] for other in others]
    publisher._heartbeat_s = 2.0
    await eventually(
        lambda: sum(counters(other)["copies_made"] for other in others) >= sum(came) + BLOCKS, deadline_s=10
    )
    publisher._heartbeat_s = 0.05


async def test_a_node_that_comes_back_finds_its_loss_made_good_and_one_copy_goes(here: Site) -> None:
    """Of a block that two nodes should have, and three had for a while; the one who stored it keeps it."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS])
    await settled(*nodes)
    await silent(nodes[0], nodes[1:])
    await eventually(lambda: sum(copies(nodes, client)) == 2 * BLOCKS, deadline_s=10)
    seen = [census_rounds(node) for node in nodes]
    await eventually(lambda: all(census_rounds(n) > was + 3e8 for n, was in zip(nodes, seen, strict=True)))
    assert held(nodes[0], client) == BLOCKS
    assert sum(node.catalog.usage().counters.get("shed_blocks", 0) for node in nodes) == BLOCKS
    target = np.zeros_like(SOURCE)
    result = await client.load(client.chain(tokens(BLOCKS)), buffers.contiguous(target, LAYOUT)).result()
    assert result.blocks == BLOCKS
    assert np.array_equal(target, SOURCE)
    await settled(*nodes)


async def test_what_three_nodes_stored_stays_on_three(here: Site) -> None:
    """Two are wanted, but engines stored it there, and will look there again; nobody prolongs the third one."""
    _, nodes = await cluster_of(here, 3)
    clients = [await writer_of(here, node) for node in nodes]
    for client in clients:
        await client.store(tokens(BLOCKS), kv_of())
    await settled(*nodes)
    rounds = [census_rounds(node) for node in nodes]
    await eventually(lambda: all(census_rounds(n) > was + 3e8 for n, was in zip(nodes, rounds, strict=True)))
    assert copies(nodes, clients[0]) == [BLOCKS] * 3


def census_rounds(node: NodeServer) -> int:
    """When the last round was, on the node's clock."""
    assert node.census is not None
    return max((counted_ns for _, counted_ns in node.census._counted.values()), default=0)


async def test_a_node_that_does_not_answer_keeps_what_it_has(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else gives his up for it: the round after asks again."""
    _, nodes = await cluster_of(here, 3)
    client = await writer_of(here, nodes[0])
    await client.store(tokens(BLOCKS), kv_of())
    await eventually(lambda: sorted(copies(nodes, client)) == [0, BLOCKS, BLOCKS])
    asked: list[int] = []

    class Deaf:
        async def Shed(self, request: object, timeout: float) -> None:
            asked.append(1)
            raise grpc.RpcError

    real = nodes[0].neighbours.stub
    monkeypatch.setattr(nodes[0].neighbours, "stub", lambda address: Deaf())
    assert nodes[0].replicas is not None
    monkeypatch.setattr(nodes[0].replicas._requests, "_neighbours", _Stub(real))
    await silent(nodes[0], nodes[1:])
    await eventually(lambda: len(asked) > 2)
    assert copies(nodes, client) == [BLOCKS] * 3
    monkeypatch.setattr(nodes[0].neighbours, "stub", real)
    await eventually(lambda: sum(copies(nodes, client)) == 2 * BLOCKS, deadline_s=10)
    await at_rest(*nodes)


class _Stub:
    def __init__(self, stub: object) -> None:
        self.stub = stub
