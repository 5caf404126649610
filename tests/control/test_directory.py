"""Who is answered, who is kept, and who is swept away. Time is a number here."""

import pytest

from kvstore.control import directory as module
from kvstore.control.directory import FORGOTTEN_MS, Directory
from kvstore.control.index.base import NodeRecord
from kvstore.errors import Refused
from kvstore.pb import control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller
from tests.contracts.index import key
from tests.control.conftest import DEADLINE_S, FakeNode, match

LOST_MS = 2000
LOAD = types_pb2.NodeLoad(lanes=[types_pb2.LaneLoad(lane="dram", queued_bytes=7)])


def address(node_id: str, incarnation: int) -> types_pb2.NodeAddress:
    return types_pb2.NodeAddress(node_id=node_id, incarnation=incarnation, grpc="127.0.0.1:1")


def beat(directory: Directory, node_id: str, incarnation: int, now_ms: int) -> bool:
    return directory.heartbeat(node_id, incarnation, LOAD, [], now_ms)


def test_a_silent_node_is_lost_and_comes_back() -> None:
    """Past node_lost_ms it is not answered but kept; its next heartbeat makes it answerable again."""
    directory = Directory(LOST_MS)
    directory.register(1, address("a", 10), ["prefill"], 0)
    assert directory.answerable(1, LOST_MS - 1)
    assert not directory.answerable(1, LOST_MS)
    assert directory.live_refs() == {1}
    assert beat(directory, "a", 10, LOST_MS + 500)
    assert directory.answerable(1, LOST_MS + 501)
    state = directory.registered("a", 10)
    assert state is not None
    assert state.load == LOAD


def test_nodes_are_named_while_they_live() -> None:
    """Past node_lost_ms what it reported last tells nothing about it."""
    directory = Directory(LOST_MS)
    directory.register(1, address("a", 10), ["prefill"], 0)
    state = directory.named("a", LOST_MS - 1)
    assert state is not None
    assert state.ref == 1
    assert directory.named("a", LOST_MS) is None
    assert directory.named("b", 0) is None


def test_heartbeats_of_strangers_are_not_known() -> None:
    """Neither a node that never registered nor another incarnation of one that did."""
    directory = Directory(LOST_MS)
    assert not beat(directory, "a", 10, 0)
    directory.register(1, address("a", 10), [], 0)
    assert not beat(directory, "a", 11, 0)
    assert directory.registered("a", 11) is None


def test_a_new_incarnation_makes_the_old_one_dead() -> None:
    """At once: the old one's locations are neither answered nor kept."""
    directory = Directory(LOST_MS)
    directory.register(1, address("a", 10), [], 0)
    directory.register(2, address("b", 10), [], 0)
    directory.register(3, address("a", 11), [], 5)
    assert not directory.answerable(1, 5)
    assert directory.answerable(3, 5)
    assert (directory.live_refs(), directory.dead_refs()) == ({2, 3}, {1})
    directory.bury({1})
    assert directory.dead_refs() == set()


def test_registering_again_changes_nothing_but_the_time() -> None:
    """A repeated registration keeps the ref, and none is dead."""
    directory = Directory(LOST_MS)
    for now_ms in (0, LOST_MS):
        directory.register(1, address("a", 10), [], now_ms)
    assert directory.answerable(1, LOST_MS + 1)
    assert (directory.live_refs(), directory.dead_refs(), len(directory.nodes())) == ({1}, set(), 1)


def test_after_a_restart_nodes_are_awaited() -> None:
    """Their locations are kept but not answered until the same incarnation registers; other incarnations are dead."""
    records = [NodeRecord(1, "a", 10), NodeRecord(2, "a", 9), NodeRecord(3, "b", 1)]
    directory = Directory(LOST_MS, records, 0)
    assert directory.live_refs() == {1, 2, 3}
    assert not any(directory.answerable(ref, 0) for ref in (1, 2, 3))
    directory.register(1, address("a", 10), [], 1)
    assert directory.answerable(1, 2)
    assert (directory.live_refs(), directory.dead_refs()) == ({1, 3}, {2})


def test_silence_for_an_hour_is_death() -> None:
    """Nodes that were lost or awaited for FORGOTTEN_MS are forgotten by name."""
    directory = Directory(LOST_MS, [NodeRecord(7, "old", 1)], 0)
    directory.register(1, address("a", 10), [], 0)
    directory.register(2, address("b", 10), [], 1)
    assert directory.expire(FORGOTTEN_MS - 1) == []
    assert sorted(directory.expire(FORGOTTEN_MS)) == ["a", "old"]
    assert (directory.live_refs(), directory.dead_refs()) == ({2}, {1, 7})
    assert not beat(directory, "a", 10, FORGOTTEN_MS)
    directory.register(1, address("a", 10), [], FORGOTTEN_MS)
    assert directory.dead_refs() == {7}


def test_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more node than the bound is refused; one that is known may register again."""
    monkeypatch.setattr(module, "NODES_MAX", 1)
    directory = Directory(LOST_MS)
    directory.check_room("a")
    directory.register(1, address("a", 10), [], 0)
    directory.check_room("a")
    with pytest.raises(Refused):
        directory.check_room("b")


def test_a_node_that_is_drained_is_no_holder_any_more() -> None:
    """It is answered as ever; those who keep copies neither count its copies nor seek any there, until it is in service
    again. To register anew changes nothing of that."""
    directory, tiers = Directory(LOST_MS), [control_pb2.TierUse(tier=types_pb2.TIER_DRAM, capacity_bytes=9)]
    for ref, node_id in enumerate(("a", "b"), 1):
        directory.register(ref, address(node_id, ref), [], 0)
        assert directory.heartbeat(node_id, ref, LOAD, tiers, 0, draining=node_id == "a")
    assert [state.address.node_id for state in directory.able(1)] == ["b"]
    assert [directory.keeping(ref, 1) for ref in (1, 2, 3)] == [False, True, False]
    assert directory.answerable(1, 1)
    directory.register(1, address("a", 1), [], 2)
    assert not directory.keeping(1, 3)
    assert directory.heartbeat("a", 1, LOAD, tiers, 4)
    assert directory.keeping(1, 5)
    assert len(directory.able(5)) == 2
    assert not directory.keeping(1, LOST_MS + 5)


async def test_holders_leave_out_a_node_that_is_drained(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """A match names it all the same."""
    await node.register()
    await node.add([key(1)])
    asked = control_pb2.HoldersRequest(caller=caller("test"), keys=key(1))
    for draining in (False, True, False):
        heartbeat = control_pb2.HeartbeatRequest(
            caller=caller("test"),
            node_id=node.node_id,
            incarnation=node.incarnation,
            tiers=[control_pb2.TierUse(tier=types_pb2.TIER_DRAM, capacity_bytes=9)],
            draining=draining,
        )
        assert (await control.Heartbeat(heartbeat, timeout=DEADLINE_S)).known
        reply = await control.Holders(asked, timeout=DEADLINE_S)
        assert (len(reply.nodes), len(reply.holder_block)) == ((0, 0) if draining else (1, 4))
        assert (await match(control, [key(1)])).blocks == 1
