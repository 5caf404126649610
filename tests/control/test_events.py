"""Events at the control plane: kept in a ring, told to who watches, and what he missed is said."""

import asyncio

import grpc.aio
import pytest

from kvstore import errors
from kvstore.control.app import ControlServer
from kvstore.control.directory import NodeState
from kvstore.control.events import KEPT_MAX, TOLD_AT_ONCE, WATCHERS_MAX, Events
from kvstore.control.presence import Presence
from kvstore.control.wire import EVENT_BYTES_MAX
from kvstore.observe.events import REPORTED_MAX, Kind
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.status import from_rpc
from tests.control.conftest import DEADLINE_S, FakeNode
from tests.waiting import eventually

CALLER = caller("test")


def state(ref: int = 1, node_id: str = "n") -> NodeState:
    return NodeState(ref, types_pb2.NodeAddress(node_id=node_id, incarnation=ref), (), 0)


def report(first: int, *texts: str, lost: int = 0) -> control_pb2.EventReport:
    told = [types_pb2.Event(kind=Kind.BLOCK_CORRUPT, text=text) for text in texts]
    return control_pb2.EventReport(first=first, events=told, ages_ms=[100] * len(told), lost=lost)


async def texts(events: Events, past: int = KEPT_MAX) -> list[str]:
    with events.watcher(past) as watcher:
        news = await watcher.next()
    assert news is not None
    return [event.text for event in news.events]


async def test_a_report_that_comes_again_is_heard_once() -> None:
    """By the numbers of its events; their time is this side's; what the node lost is an event too."""
    events, node = Events(lambda: 5_000), state()
    events.heard(node, report(1, "a", "b"))
    events.heard(node, report(1, "a", "b", "c"))
    events.heard(node, report(2, "b", "c"))
    events.heard(node, report(9, "d", lost=5))
    events.heard(node, report(9, "d", lost=5))
    assert await texts(events) == ["a", "b", "c", "5 events went before they were reported", "d"]
    with events.watcher(5) as watcher:
        news = await watcher.next()
        assert news is not None
        assert [(event.at_ms, event.node_id) for event in news.events] == [
            *[(4_900, "n")] * 3,
            (5_000, "n"),
            (4_900, "n"),
        ]


async def test_a_slow_watcher_is_told_what_he_missed() -> None:
    """He holds nobody up, and goes on with what there is, a bounded number at once."""
    events = Events(lambda: 0)
    with events.watcher() as slow, events.watcher() as quick:
        for number in range(KEPT_MAX + 10):
            events.note(Kind.NODE_BACK, str(number))
            if number == 0:
                first = await quick.next()
                assert first is not None
                assert [event.text for event in first.events] == ["0"]
        news = await slow.next()
        assert news is not None
        assert (news.lost, len(news.events), news.events[0].text) == (10, TOLD_AT_ONCE, "10")
        news = await slow.next()
        assert news is not None
        assert (news.lost, news.events[0].text) == (0, str(10 + TOLD_AT_ONCE))
        news = await quick.next()
        assert news is not None
        assert (news.lost, news.events[0].text) == (9, "10")


async def test_who_waits_is_woken_and_let_go() -> None:
    """An event, then the end: what there is comes first, then nothing more."""
    events = Events(lambda: 0)
    events.note(Kind.NODE_BACK, "before")
    with events.watcher() as watcher:
        waiting = asyncio.create_task(watcher.next())
        await asyncio.sleep(0)
        events.note(Kind.NODE_BACK, "now")
        news = await waiting
        assert news is not None
        assert [event.text for event in news.events] == ["now"]
        events.note(Kind.NODE_BACK, "last")
        events.close()
        assert await watcher.next() is not None
        assert await watcher.next() is None


async def test_a_bounded_number_watch() -> None:
    """One more is refused, until another goes."""
    events = Events(lambda: 0)
    watching = [events.watcher() for _ in range(WATCHERS_MAX)]
    for each in watching:
        each.__enter__()
    with pytest.raises(errors.Refused), events.watcher():
        pass
    watching.pop().__exit__(None, None, None)
    with events.watcher():
        pass
    for each in watching:
        each.__exit__(None, None, None)


def test_presence() -> None:
    """Once each when a node goes silent and when it is heard again; a new incarnation is neither."""
    presence, a, b = Presence(), state(1, "a"), state(2, "b")
    assert presence.look([(a, True), (b, False)]) == ([], [])
    assert presence.look([(a, False), (b, False)]) == ([a], [])
    assert presence.look([(a, False), (b, False)]) == ([], [])
    assert presence.look([(a, True), (b, True)]) == ([], [a, b])
    assert presence.look([(state(3, "a"), True), (b, True)]) == ([], [])


async def watch(admin: admin_pb2_grpc.AdminStub, **request: object) -> grpc.aio.UnaryStreamCall:
    call = admin.Watch(admin_pb2.WatchRequest(caller=CALLER, **request), timeout=DEADLINE_S)
    await call.initial_metadata()
    return call


async def test_watch_by_node_and_kind(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, node: FakeNode
) -> None:
    """What was asked for, from before too; heartbeats bring a node's."""
    everything = await watch(admin)
    await node.register()
    await FakeNode(control, node_id="b").register()
    chosen = await watch(admin, node_id="a", kinds=[Kind.NODE_REGISTERED, Kind.BLOCK_CORRUPT], past=100)
    heartbeat = control_pb2.HeartbeatRequest(caller=CALLER, node_id="a", incarnation=1, events=report(1, "x"))
    await control.Heartbeat(heartbeat, timeout=DEADLINE_S)
    told = [event for _ in range(3) for event in (await everything.read()).events]
    assert [(event.node_id, event.kind) for event in told] == [
        ("a", Kind.NODE_REGISTERED),
        ("b", Kind.NODE_REGISTERED),
        ("a", Kind.BLOCK_CORRUPT),
    ]
    told = [event for _ in range(2) for event in (await chosen.read()).events]
    assert [(event.node_id, event.kind) for event in told] == [
        ("a", Kind.NODE_REGISTERED),
        ("a", Kind.BLOCK_CORRUPT),
    ]


async def test_what_operators_do(admin: admin_pb2_grpc.AdminStub) -> None:
    """Rules, quotas, purges and log levels, each once; what is only asked is no event."""
    call = await watch(admin)
    await admin.SetRules(
        admin_pb2.AdminSetRulesRequest(caller=CALLER, pattern="m*", rules=types_pb2.Rules(copies=2)), timeout=DEADLINE_S
    )
    quota = types_pb2.Quota(dram_bytes=2**30)
    await admin.SetQuota(admin_pb2.AdminSetQuotaRequest(caller=CALLER, tenant="t", quota=quota), timeout=DEADLINE_S)
    for dry_run in (True, False):
        purge = admin_pb2.PurgeStoredRequest(caller=CALLER, tenant="t", dry_run=dry_run)
        await admin.Purge(purge, timeout=DEADLINE_S)
    await admin.GetRules(admin_pb2.AdminGetRulesRequest(caller=CALLER), timeout=DEADLINE_S)
    level = admin_pb2.SetNodeLogLevelRequest(caller=CALLER, level="info", logger="kvstore.control.admin")
    await admin.SetLogLevel(level, timeout=DEADLINE_S)
    told: list[types_pb2.Event] = []
    while len(told) < 4:
        told += (await call.read()).events
    assert [(event.kind, event.subject) for event in told] == [
        (Kind.RULES_CHANGED, "m*"),
        (Kind.QUOTA_CHANGED, "t"),
        (Kind.PURGED, ""),
        (Kind.LOG_LEVEL_CHANGED, "kvstore.control.admin"),
    ]
    assert "'copies': 2" in told[0].text


async def test_the_end_of_the_control_plane(
    server: ControlServer, admin: admin_pb2_grpc.AdminStub, node: FakeNode
) -> None:
    """A watcher's stream ends as one that is over, and holds up nothing."""
    call = await watch(admin)
    async with asyncio.timeout(DEADLINE_S):
        await server.stop()
        assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_watcher_who_goes_is_one_less(server: ControlServer, admin: admin_pb2_grpc.AdminStub) -> None:
    """His place is free once the stream has ended."""
    calls = [await watch(admin) for _ in range(WATCHERS_MAX)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (await watch(admin)).read()
    assert type(from_rpc(refused.value)) is errors.Refused
    for call in calls:
        call.cancel()

    async def room() -> bool:
        more = await watch(admin, past=1)
        try:
            await admin.SetLogLevel(admin_pb2.SetNodeLogLevelRequest(caller=CALLER, level="warning"))
            return bool((await more.read()).events)
        except grpc.aio.AioRpcError:
            return False
        finally:
            more.cancel()

    assert await eventually(room)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        (report(1, *["x"] * (REPORTED_MAX + 1)), errors.TooLarge),
        (report(1, "x" * (EVENT_BYTES_MAX + 1)), errors.TooLarge),
        (control_pb2.EventReport(first=1, events=[types_pb2.Event()]), errors.InvalidInput),
    ],
)
async def test_reports_that_cannot_be(
    control: control_pb2_grpc.ControlStub, events: control_pb2.EventReport, error: type[Exception]
) -> None:
    """Too many, too long, or without their ages: refused, and nothing is heard."""
    request = control_pb2.HeartbeatRequest(caller=CALLER, node_id="a", incarnation=1, events=events)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await control.Heartbeat(request, timeout=DEADLINE_S)
    assert type(from_rpc(failed.value)) is error


async def test_a_kind_that_is_none(admin: admin_pb2_grpc.AdminStub) -> None:
    """Refused, with those that there are."""
    with pytest.raises(grpc.aio.AioRpcError, match="node_lost") as failed:
        await admin.Watch(admin_pb2.WatchRequest(caller=CALLER, kinds=["x"]), timeout=DEADLINE_S).read()
    assert type(from_rpc(failed.value)) is errors.InvalidInput
