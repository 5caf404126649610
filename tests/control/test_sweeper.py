"""The sweep over an index and a directory, step by step."""

from kvstore.control.directory import Directory
from kvstore.control.index.base import Batch
from kvstore.control.index.memory import MemoryIndex
from kvstore.control.sweeper import Sweeper
from kvstore.pb import types_pb2
from tests.contracts.index import LATER_MS, NOW_MS, add, held, key


def address(node_id: str, incarnation: int) -> types_pb2.NodeAddress:
    return types_pb2.NodeAddress(node_id=node_id, incarnation=incarnation, grpc="127.0.0.1:1")


async def test_a_dead_incarnation_is_buried_after_a_whole_round() -> None:
    """Its locations go in bounded steps; its record only after a round that began after its death."""
    index, directory = MemoryIndex(), Directory(2000)
    sweeper = Sweeper(index, directory, blocks_max=4)
    keys = [key(i) for i in range(10)]
    old = await index.admit("a", 1)
    directory.register(old.ref, address("a", 1), [], NOW_MS)
    await index.apply(old.ref, Batch(1, [add(keys)]))
    await sweeper.step(NOW_MS)  # a round begins while it lives
    new = await index.admit("a", 2)
    directory.register(new.ref, address("a", 2), [], NOW_MS)
    await index.apply(new.ref, Batch(1, [add(keys[:5])]))
    while sweeper.rounds < 1:
        await sweeper.step(NOW_MS)
    assert old.ref in {record.ref for record in await index.nodes()}
    while sweeper.rounds < 2:
        await sweeper.step(NOW_MS)
    assert {record.ref for record in await index.nodes()} == {new.ref}
    assert {(row[0], row[1]) for row in await held(index, keys)} == {(i, new.ref) for i in range(5)}
    assert sweeper.removed_locations == 10
    assert directory.dead_refs() == set()


async def test_lost_and_awaited_nodes_keep_what_has_not_expired() -> None:
    """Only what is past its deadline goes from nodes that may come back."""
    index = MemoryIndex()
    lost, awaited = await index.admit("lost", 1), await index.admit("awaited", 1)
    fresh, expired = [key("fresh")], [key("expired")]
    for node in (lost, awaited):
        await index.apply(node.ref, Batch(1, [add(fresh), add(expired, deadline_ms=NOW_MS)]))
    directory = Directory(2000, [lost, awaited], NOW_MS)
    directory.register(lost.ref, address("lost", 1), [], NOW_MS - 10_000)
    sweeper = Sweeper(index, directory)
    await sweeper.step(NOW_MS)
    assert {row[1] for row in await held(index, fresh)} == {lost.ref, awaited.ref}
    assert await held(index, expired) == set()
    await sweeper.step(LATER_MS)
    assert await index.blocks() == 0
