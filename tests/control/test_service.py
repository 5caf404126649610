"""The control plane through real gRPC: what nodes and clients see."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from kvstore import errors
from kvstore.control.prefix import Answer
from kvstore.pb import control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc import PROTOCOL_VERSION
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller
from kvstore.rpc.status import from_rpc
from tests.contracts.index import key
from tests.control.conftest import DEADLINE_S, NAMESPACE, FakeNode, match

KEYS = [key(i) for i in range(10)]


async def test_what_is_published_is_matched(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """The longest prefix comes back as columns with the node's address and load."""
    assert (await match(control, KEYS)).blocks == 0
    await node.register()
    assert await node.heartbeat()
    await node.add([*KEYS[:4], *KEYS[5:]])
    reply = await match(control, KEYS)
    assert reply.blocks == 4
    assert [address.node_id for address in reply.nodes] == ["a"]
    assert [lane.queued_bytes for lane in reply.loads[0].lanes] == [5]
    assert np.frombuffer(reply.location_block, "<u4").tolist() == [0, 1, 2, 3]
    assert np.frombuffer(reply.location_node, "<u2").tolist() == [0] * 4
    assert list(reply.location_tier) == [types_pb2.TIER_DRAM] * 4
    assert np.frombuffer(reply.location_shard, "<u2").tolist() == [0] * 4
    remaining = np.frombuffer(reply.location_remaining_ms, "<u4")
    assert ((remaining > 50_000) & (remaining <= 60_000)).all()
    await node.withdraw(KEYS[2:3])
    assert (await match(control, KEYS)).blocks == 2


async def test_all_shards_on_whatever_nodes(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """A block counts when every rank is stored somewhere; the node table names each node once."""
    other = FakeNode(control, node_id="b", incarnation=7)
    await node.register()
    await other.register()
    await node.add(KEYS[:6], 0, 2)
    await other.add(KEYS[:3], 1, 2)
    reply = await match(control, KEYS, shard_count=2)
    assert reply.blocks == 3
    assert sorted(address.node_id for address in reply.nodes) == ["a", "b"]
    assert len(reply.location_block) == 4 * 6
    assert (await match(control, KEYS, shard_count=1)).blocks == 0
    assert (await match(control, KEYS, shard_count=0)).blocks == 0


async def test_expired_locations_are_not_answered(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """A location without remaining time is none."""
    await node.register()
    node.remaining_ms = 0
    await node.add(KEYS)
    assert (await match(control, KEYS)).blocks == 0


async def test_a_node_with_a_salt_of_its_own(
    control: control_pb2_grpc.ControlStub, node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Is refused each time, which the log says once, until it comes with the right one; nothing of it is kept."""
    for check, lines in ((b"x", 1), (b"x", 1), (b"", 1), (b"y", 2)):
        register = node.register(salt_check=check)
        if check:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await register
            assert isinstance(from_rpc(refused.value), errors.SaltMismatch)
        else:
            assert not await node.heartbeat()
            await register
        assert caplog.text.count("node a salts keys differently") == lines


async def test_the_unregistered_are_told_so(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """Heartbeat, publish and comparison of an unknown node or incarnation answer known=false and do nothing."""
    assert not await node.heartbeat()
    assert not (await node.add(KEYS)).known
    assert not (await node.compare()).known
    await node.register()
    stranger = FakeNode(control, incarnation=2)
    assert not await stranger.heartbeat()
    assert not (await stranger.add(KEYS)).known
    assert (await match(control, KEYS)).blocks == 0


async def test_a_match_tells_the_load_of_its_reader(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """As its last heartbeat or report had it, also when it holds nothing; of a node that is not known, nothing."""
    await node.register()
    assert await node.heartbeat()
    reply = await match(control, KEYS, reader=node.node_id)
    assert reply.blocks == 0
    assert [lane.queued_bytes for lane in reply.reader_load.lanes] == [5]
    await node.publish([], lanes=[types_pb2.LaneLoad(lane="dram", queued_bytes=9)])
    assert (await match(control, KEYS, reader=node.node_id)).reader_load.lanes[0].queued_bytes == 9
    for reader in ("", "stranger"):
        assert not (await match(control, KEYS, reader=reader)).HasField("reader_load")


async def test_a_new_incarnation_makes_the_old_locations_stale(
    control: control_pb2_grpc.ControlStub, node: FakeNode
) -> None:
    """They are not answered any more, at once, and the new incarnation starts with its own sequence."""
    first = await node.register()
    await node.add(KEYS)
    restarted = FakeNode(control, incarnation=2)
    second = await restarted.register()
    assert second.node_ref != first.node_ref
    assert second.sequence == 0
    assert (await match(control, KEYS)).blocks == 0
    await restarted.add(KEYS[:2])
    assert (await match(control, KEYS)).blocks == 2
    assert not (await node.withdraw(KEYS)).known
    assert (await match(control, KEYS)).blocks == 2


async def test_repeated_updates_apply_once(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """A batch that comes again, late, is acknowledged with the last sequence and ignored."""
    await node.register()
    await node.add(KEYS)
    await node.withdraw(KEYS[5:])
    node.sequence = 0
    reply = await node.publish([node.records(KEYS, 0, 1)])
    assert (reply.known, reply.sequence) == (True, 2)
    assert (await match(control, KEYS)).blocks == 5
    assert (await node.register()).sequence == 2


async def test_anti_entropy_heals_both_directions(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """What only the node has is added, what only the index has is removed, other buckets are not sent."""
    await node.register()
    await node.add(KEYS)
    assert await node.heal() == []
    gone, new = (KEYS[3], 0, 1), (key("unpublished"), 0, 1)
    node.places = (node.places - {gone}) | {new}
    assert set(await node.heal()) == {gone[0][0], new[0][0]}
    assert await node.heal() == []
    assert (await match(control, KEYS)).blocks == 3
    assert (await match(control, [new[0]])).blocks == 1


# ---- bad input -------------------------------------------------------------------------------------------------------


def _match(**fields: Any) -> control_pb2.MatchRequest:
    return control_pb2.MatchRequest(
        **{"caller": caller("test"), "namespace_id": NAMESPACE, "keys": KEYS[0], "shard_count": 1, **fields}
    )


def _publish(**fields: Any) -> control_pb2.PublishRequest:
    request = {"caller": caller("test"), "node_id": "a", "incarnation": 1, "sequence": 1, **fields}
    return control_pb2.PublishRequest(**request)


def _records(**fields: Any) -> list[control_pb2.Records]:
    good = {"tier": 2, "shard_count": 1, "namespace_id": NAMESPACE, "keys": KEYS[0], "remaining_ms": bytes(4)}
    return [control_pb2.Records(**{**good, **fields})]


def _register(**fields: Any) -> control_pb2.RegisterRequest:
    address = types_pb2.NodeAddress(**{"node_id": "a", "incarnation": 1, "grpc": "127.0.0.1:1", **fields})
    return control_pb2.RegisterRequest(caller=caller("test"), address=address)


MANY = bytes(16 * (KEYS_PER_MESSAGE_MAX + 1))
BAD: list[tuple[str, Any, type[errors.KVStoreError], grpc.StatusCode]] = [
    ("Match", _match(namespace_id=b"short"), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Match", _match(keys=b""), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Match", _match(keys=bytes(17)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Match", _match(keys=MANY), errors.TooLarge, grpc.StatusCode.OUT_OF_RANGE),
    ("Match", _match(shard_count=2000), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (
        "Match",
        _match(caller=types_pb2.Caller(protocol_version=PROTOCOL_VERSION + 1)),
        errors.VersionMismatch,
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    ("Match", control_pb2.MatchRequest(), errors.VersionMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    ("Publish", _publish(sequence=0), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(lanes=[types_pb2.LaneLoad()] * 65), errors.TooLarge, grpc.StatusCode.OUT_OF_RANGE),
    ("Publish", _publish(replace_buckets=[256]), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(namespace_id=b"")), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(keys=b"odd")), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(remaining_ms=b"")), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(withdraw=True)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(tier=0)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(tier=9)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(shard_rank=1)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(shard_count=5000)), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Publish", _publish(records=_records(keys=MANY)), errors.TooLarge, grpc.StatusCode.OUT_OF_RANGE),
    ("Register", _register(node_id=""), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Register", _register(node_id="n" * 300), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Register", _register(node_id="n\n\x1b[2J"), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    ("Register", _register(grpc=""), errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (
        "CompareBuckets",
        control_pb2.CompareBucketsRequest(caller=caller("test"), digests=bytes(8)),
        errors.InvalidInput,
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (
        "Heartbeat",
        control_pb2.HeartbeatRequest(caller=caller("test"), lanes=[types_pb2.LaneLoad()] * 65),
        errors.TooLarge,
        grpc.StatusCode.OUT_OF_RANGE,
    ),
]


@pytest.mark.parametrize(("method", "request_", "expected", "code"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_input_is_refused_by_class(
    control: control_pb2_grpc.ControlStub,
    node: FakeNode,
    method: str,
    request_: Any,
    expected: type[errors.KVStoreError],
    code: grpc.StatusCode,
) -> None:
    """Each bad request gets its status code, becomes its class at the caller, and changes nothing."""
    await node.register()
    await node.add(KEYS)
    call: Callable[..., Any] = getattr(control, method)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(request_, timeout=DEADLINE_S)
    assert failed.value.code() == code
    assert type(from_rpc(failed.value)) is expected
    assert (await match(control, KEYS)).blocks == len(KEYS)
    assert await node.heal() == []


async def test_the_longest_match_that_fits(control: control_pb2_grpc.ControlStub, node: FakeNode) -> None:
    """As many keys as one message may hold, which are more than a million tokens, are matched in one call."""
    await node.register()
    keys = [key(("long", i)) for i in range(KEYS_PER_MESSAGE_MAX)]
    await node.add(keys)
    reply = await match(control, keys)
    assert reply.blocks == KEYS_PER_MESSAGE_MAX
    assert len(reply.location_block) == 4 * KEYS_PER_MESSAGE_MAX


async def test_a_surprise_is_no_answer(
    control: control_pb2_grpc.ControlStub, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug while answering is an error at the caller, and the next call is served."""

    def broken(*_: Any) -> Answer:
        raise ZeroDivisionError

    await node.register()
    with monkeypatch.context() as broken_for_now:
        broken_for_now.setattr("kvstore.control.service.answer", broken)
        with pytest.raises(grpc.aio.AioRpcError):
            await match(control, KEYS)
    assert (await match(control, KEYS)).blocks == 0
