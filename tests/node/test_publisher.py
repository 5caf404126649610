"""The publisher against a real control plane: whatever happens between them, the index ends up as the catalog is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import numpy as np
import pytest

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import MIB, ControlConfig, NodeConfig
from kvstore.control.app import ControlServer, serve
from kvstore.node import publisher as module
from kvstore.node.answers import Record, ShardId
from kvstore.node.catalog import Catalog
from kvstore.node.publisher import Publisher, _columns
from kvstore.node.retention import Retention
from kvstore.observe.events import Outbox
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, types_pb2
from kvstore.policy.rulebook import RuleBook
from kvstore.policy.rules import DEFAULT_RULES
from kvstore.policy.slots import SlotSpace
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller, open_channel
from tests.inprocess import SECOND_NS, Clock
from tests.waiting import eventually

NAMESPACE = bytes(range(16))
LAYOUT = Layout((LayerGroup(layers=1, page_tokens=64, page_bytes=64, dtype="uint8", tensors=1),))
SHARD = ShardId(0, 1)
WRITER = "session:w"


def keys(count: int, seed: int = 0) -> list[bytes]:
    return [raw.tobytes() for raw in np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)]


LANE = types_pb2.LaneLoad(lane="compute-out", queued_bytes=5)


class Server:
    """A control plane that can go away and come back, with or without what it knew."""

    def __init__(self, folder: Path) -> None:
        self._config = ControlConfig(
            listen=f"unix:{folder}/control.sock",
            index_path=str(folder / "index"),
            index_bytes_max=64 * MIB,
            heartbeat_ms=20,
            node_lost_ms=60_000,
        )
        self._running: ControlServer | None = None
        self._lives = 0

    async def up(self, forgetful: bool = False) -> None:
        self._lives += forgetful
        self._running = await serve(replace(self._config, index_path=f"{self._config.index_path}{self._lives}"))

    async def down(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            await running.stop()

    @property
    def address(self) -> str:
        return self._config.listen


class Node:
    """A catalog without memory, a publisher, and what the test did to the catalog."""

    def __init__(self, control: str, publish_ms: int = 1) -> None:
        ids = (i.to_bytes(16, "big") for i in range(1, 10**9))
        self.clock = Clock()
        self.catalog = Catalog(
            {Tier.DRAM: SlotSpace(2**40, MIB, iter(range(1, 10**9)))},
            lease_ns=60 * SECOND_NS,
            hold_ns_max=60 * SECOND_NS,
            pinned_bytes_max=0,
            new_id=lambda: next(ids),
        )
        self.catalog.open_namespace(NAMESPACE, "tenant", LAYOUT)
        self.retention = Retention(self.catalog, RuleBook(DEFAULT_RULES, {}))
        address = types_pb2.NodeAddress(node_id="n", incarnation=7, grpc="unix:/nowhere")
        self.events = Outbox()
        config = NodeConfig(control=control, publish_ms=publish_ms)
        self.publisher = Publisher(
            config, address, self.catalog, self.retention, self.clock, lambda: [LANE], self.events
        )

    def settle(self) -> None:
        self.catalog.take_actions()
        self.publisher.add(self.catalog.take_records())

    def store(self, stored: Sequence[bytes]) -> None:
        """Each key is a chain of its own, so that any can go."""
        for start in range(0, len(stored), 1000):
            some = stored[start : start + 1000]
            lease = self.catalog.reserve(NAMESPACE, SHARD, some, 0, WRITER, self.clock())
            assert set(lease.outcomes) == {Outcome.GRANTED}
            self.catalog.commit(lease.lease_id, WRITER, [True] * len(some), [b""] * len(some), self.clock())
        self.settle()

    def drop(self, dropped: Iterable[bytes]) -> None:
        for key in dropped:
            assert self.catalog.drop(NAMESPACE, SHARD, key, "purge")
        self.settle()


class Wire(grpc.aio.UnaryUnaryClientInterceptor):
    """Sees every call of the publisher, and may fail it before or after it was made."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.before: Callable[[str], bool] = lambda name: False
        self.after: Callable[[str], bool] = lambda name: False
        self.error: Callable[[], grpc.aio.AioRpcError] = _lost

    async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]  # gRPC's
        name = str(details.method, "utf8") if isinstance(details.method, bytes) else details.method
        name = name.rpartition("/")[2]
        self.calls.append((name, request))
        if self.before(name):
            raise self.error()
        call = await continuation(details, request)
        if self.after(name):
            await call
            raise self.error()
        return call

    def published(self) -> list[control_pb2.PublishRequest]:
        return [request for name, request in self.calls if isinstance(request, control_pb2.PublishRequest)]


def _refused() -> grpc.aio.AioRpcError:
    said = grpc.aio.Metadata(("kvstore-error", "Refused"), ("kvstore-retry-after-ms", "5"))
    return grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), said, details="full")


def _lost() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="the wire was cut")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    yield server
    await server.down()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch, server: Server) -> Wire:
    wire = Wire()
    monkeypatch.setattr(
        module, "open_channel", lambda address, **_: grpc.aio.insecure_channel(address, interceptors=[wire])
    )
    return wire


@pytest.fixture
async def node(server: Server) -> AsyncIterator[Node]:
    node = Node(server.address)
    yield node
    await node.publisher.stop()


async def in_sync(server: Server, node: Node) -> bool:
    """Whether the index has exactly the catalog's records."""
    async with open_channel(server.address) as channel:
        request = control_pb2.CompareBucketsRequest(
            caller=caller("test"), node_id="n", incarnation=7, digests=node.catalog.digests().tobytes()
        )
        try:
            reply = await control_pb2_grpc.ControlStub(channel).CompareBuckets(request, timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return reply.known and not reply.differing


async def test_additions_and_withdrawals_arrive(server: Server, node: Node) -> None:
    """What is stored and dropped is in the index soon, also what was there before the node knew a control plane."""
    await server.up()
    stored = keys(3000)
    node.store(stored[:1000])
    node.publisher.start()
    await eventually(lambda: in_sync(server, node))
    node.store(stored[1000:])
    node.drop(stored[500:1500])
    await eventually(lambda: in_sync(server, node))
    assert node.publisher.registered


async def test_a_burst_becomes_one_batch_in_order(server: Server, node: Node, wire: Wire) -> None:
    """Records of one moment travel together, in the order of the decisions, with rising sequence numbers."""
    await server.up()
    node.publisher.start()
    await eventually(lambda: node.publisher.registered)
    key = keys(1)
    for _ in range(20):
        node.store(key)
        node.drop(key)
    node.store(key)
    await eventually(lambda: in_sync(server, node))
    batches = wire.published()
    assert len(batches) <= 2
    assert [len(r.keys) // 16 for batch in batches for r in batch.records] == [1] * 41
    assert [r.withdraw for batch in batches for r in batch.records] == [False, True] * 20 + [False]
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
    assert all([*batch.lanes] == [LANE] for batch in batches)


async def test_what_comes_after_a_pause_is_told_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay is one of the average: after a pause eight batches go at once, and what comes then waits."""
    now_s = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    await server.up()
    node = Node(server.address, publish_ms=60_000)
    node.publisher.start()
    await eventually(lambda: node.publisher.registered)
    now_s = 1000.0
    *some, late = keys(9)
    for key in some:
        node.store([key])
        await eventually(lambda: in_sync(server, node))
    node.store([late])
    assert not any([await in_sync(server, node) for _ in range(20)])
    await node.publisher.stop()


@pytest.mark.parametrize("forgetful", [False, True], ids=["same index", "empty index"])
async def test_a_restarted_control_plane_is_refilled(server: Server, node: Node, forgetful: bool) -> None:
    """While it was away nothing waited; when it is back it learns what came and what went, from whatever it knew."""
    await server.up()
    node.publisher.start()
    stored = keys(2000)
    node.store(stored[:1000])
    await eventually(lambda: in_sync(server, node))
    await server.down()
    node.store(stored[1000:])
    node.drop(stored[:300])
    await eventually(lambda: not node.publisher.registered)
    await server.up(forgetful)
    await eventually(lambda: in_sync(server, node))


async def test_only_buckets_that_differ_are_sent_anew(server: Server, node: Node, wire: Wire) -> None:
    """After an outage in which little changed, little is sent."""
    await server.up()
    node.publisher.start()
    stored = keys(2000)
    node.store(stored)
    await eventually(lambda: in_sync(server, node))
    await server.down()
    node.drop(stored[:2])
    await eventually(lambda: not node.publisher.registered)
    wire.calls.clear()
    await server.up()
    await eventually(lambda: in_sync(server, node))
    resent = sum(len(r.keys) // 16 for batch in wire.published() for r in batch.records)
    assert resent < 100
    assert {bucket for batch in wire.published() for bucket in batch.replace_buckets} <= {k[0] for k in stored[:2]}


async def test_more_than_the_queue_holds_is_compared_instead(
    server: Server, node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records beyond the bound are not kept: the buckets are compared, and nothing is lost."""
    monkeypatch.setattr(module, "_PENDING_MAX", 500)
    await server.up()
    node.publisher.start()
    await eventually(lambda: node.publisher.registered)
    node.store(keys(1000))
    await eventually(lambda: in_sync(server, node))
    assert any(batch.replace_buckets for batch in wire.published())


@pytest.mark.parametrize("call", ["CompareBuckets", "Publish", "Register", "Heartbeat"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_call_loses_no_record(
    server: Server, node: Node, wire: Wire, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    """Any call may fail once, on its way there or back, during the comparison after an overflow too."""
    monkeypatch.setattr(module, "_PENDING_MAX", 500)
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    await server.up()
    node.publisher.start()
    await eventually(lambda: node.publisher.registered)
    failures = iter([True])
    setattr(wire, when, lambda name: name == call and next(failures, False))
    node.store(keys(1000))
    await eventually(lambda: in_sync(server, node))
    node.store(keys(10, seed=1))
    await eventually(lambda: in_sync(server, node))


async def test_a_full_index_is_asked_again(server: Server, node: Node, wire: Wire) -> None:
    """A refusal says when: the same batch comes again then, and nothing is compared for it."""
    await server.up()
    node.publisher.start()
    await eventually(lambda: node.publisher.registered)
    wire.calls.clear()
    refusals = iter([True, True])
    wire.before = lambda name: name == "Publish" and next(refusals, False)
    wire.error = _refused
    node.store(keys(10))
    await eventually(lambda: in_sync(server, node))
    assert [batch.sequence for batch in wire.published()] == [1, 1, 1]
    assert "CompareBuckets" not in [name for name, _ in wire.calls]


async def test_a_control_plane_that_forgets_between_two_calls(server: Server, node: Node) -> None:
    """One that does not know the node when it compares has compared nothing: the node registers again."""
    await server.up()
    node.store(keys(100))
    answers = iter([control_pb2.CompareBucketsReply(known=False)])
    node.publisher.start()
    stub = node.publisher._stub
    real = stub.CompareBuckets

    async def compare(request: control_pb2.CompareBucketsRequest, timeout: float) -> control_pb2.CompareBucketsReply:
        return next(answers, None) or await real(request, timeout=timeout)

    stub.CompareBuckets = compare
    await eventually(lambda: node.publisher.registered)
    assert await in_sync(server, node)


async def test_a_bucket_larger_than_a_message_travels_in_parts(server: Server, node: Node) -> None:
    """More keys with one first byte than a message may hold are still told, and told right."""
    await server.up()
    stored = [b"\x07" + key[1:] for key in keys(KEYS_PER_MESSAGE_MAX + 1000)]
    node.store(stored)
    node.publisher.start()
    await eventually(lambda: in_sync(server, node), deadline_s=15)


async def test_nothing_waits_for_a_control_plane_that_is_not_there(node: Node) -> None:
    """Adding records returns at once, and stopping ends the attempts."""
    node.publisher.start()
    node.store(keys(100))
    await asyncio.sleep(0)
    assert not node.publisher.registered
    async with asyncio.timeout(1):
        await node.publisher.stop()


def test_columns_are_runs_of_like_records() -> None:
    """Order is kept: a run ends where anything but the key changes; times are whole milliseconds within 32 bits."""
    a, b, c = keys(3)
    add = Record(False, Tier.DRAM, SHARD, NAMESPACE, a, 1_999_999)
    records = [add, add._replace(key=b, remaining_ns=2**63), add._replace(withdraw=True), add._replace(key=c)]
    columns = _columns([*records, add._replace(tier=Tier.HBM), add._replace(shard=ShardId(1, 2), remaining_ns=-5)])
    assert [(r.withdraw, r.tier, r.shard_rank, r.shard_count) for r in columns] == [
        (False, 2, 0, 1),
        (True, 2, 0, 1),
        (False, 2, 0, 1),
        (False, 1, 0, 1),
        (False, 2, 1, 2),
    ]
    assert columns[0].keys == a + b
    assert [np.frombuffer(r.remaining_ms, "<u4").tolist() for r in columns] == [[1, 2**32 - 1], [], [1], [1], [0]]


async def test_rules_come_with_registration_and_heartbeats(server: Server, node: Node) -> None:
    """What operators set before the node came, and what they set later without reaching it."""
    await server.up()
    async with open_channel(server.address) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)

        async def change(copies: int) -> int:
            request = admin_pb2.AdminSetRulesRequest(
                caller=caller("test"), pattern="*", rules=types_pb2.Rules(copies=copies)
            )
            return (await admin.SetRules(request, timeout=5)).book.version

        version = await change(2)
        node.publisher.start()
        await eventually(lambda: node.publisher.registered)
        assert node.retention.version == version
        version = await change(3)
        await eventually(lambda: node.retention.version == version)
