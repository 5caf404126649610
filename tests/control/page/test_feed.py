"""What viewers are told, and when."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from kvstore.control.page import feed as feed_module
from kvstore.control.page import happened
from kvstore.control.page.feed import VIEWERS_MAX, Event, Feed
from kvstore.control.page.history import STRETCH_MS
from kvstore.control.page.source import Look
from kvstore.errors import ControlUnavailable, Refused
from kvstore.pb import admin_pb2, types_pb2
from tests.control.page.looks import look, node_usage


class Cluster:
    """What the feed looks at: the test says what is there, and turns the clock by `step_ms` with every look."""

    def __init__(self, step_ms: int = 500) -> None:
        self.now_ms = 1_000_000
        self.step_ms = step_ms
        self.looks = 0
        self.answer: Callable[[], Look] = look

        self.news: asyncio.Queue[admin_pb2.WatchReply] = asyncio.Queue()
        self.pasts: list[int] = []

    async def watch(self, past: int) -> AsyncIterator[admin_pb2.WatchReply]:
        """Until a message that tells of a loss."""
        self.pasts.append(past)
        while not (reply := await self.news.get()).lost:
            yield reply
        raise ControlUnavailable("gone")

    async def ask(self) -> Look:
        self.now_ms += self.step_ms
        self.looks += 1
        return self.answer()


@asynccontextmanager
async def watching(cluster: Cluster, interval_ms: int = 1) -> AsyncIterator[Feed]:
    feed = Feed(cluster.ask, cluster.watch, interval_ms, lambda: cluster.now_ms)
    try:
        yield feed
    finally:
        await feed.close()


async def until(stream: AsyncIterator[Event], name: str, wanted: Callable[[Any], bool] = lambda data: True) -> Any:
    """The data of the first event of that name that is as wanted."""
    async with asyncio.timeout(5):
        async for kind, text, _ in stream:
            if kind == name and wanted(data := json.loads(text)):
                return data
    raise AssertionError("the stream has ended")


async def test_a_state_says_what_the_nodes_do() -> None:
    """Nodes by their names, each with how it stands; a lane's rate is what it moved since the look before."""
    cluster = Cluster()
    moved = iter(range(0, 10**9, 1000))
    cluster.answer = lambda: look(
        node_usage("b", moved_bytes=next(moved), corrupt_on_disk=2),
        admin_pb2.NodeUsage(node_id="a", error="refused"),
        admin_pb2.NodeUsage(node_id="c"),
        dead=("a",),
    )
    async with watching(cluster) as feed, aclosing(feed.events()) as stream:
        state = await until(stream, "state", lambda state: state["nodes"][1]["lanes"][0]["bytes_per_s"])
    assert [(node["id"], node["state"], node["error"]) for node in state["nodes"]] == [
        ("a", "down", "refused"),
        ("b", "up", ""),
        ("c", "mute", ""),
    ]
    (lane,) = state["nodes"][1]["lanes"]
    assert (lane["bytes_per_s"], lane["limit_is"], lane["limit_bytes_per_s"]) == (2000, "measured", 10**9)
    assert state["nodes"][1]["tiers"][0]["live_bytes"] == 40
    assert state["nodes"][1]["faults"] == {"corrupt": 2}


async def test_a_lane_that_was_silent_is_measured_over_its_silence() -> None:
    """A node that could not be asked for a while did not carry all of it in one instant."""
    cluster = Cluster(step_ms=1000)
    answers = [
        look(node_usage("a")),
        *[look(admin_pb2.NodeUsage(node_id="a"))] * 3,
        look(node_usage("a", moved_bytes=8000)),
    ]
    cluster.answer = lambda: answers[min(cluster.looks, len(answers)) - 1]
    async with watching(cluster) as feed, aclosing(feed.events()) as stream:
        state = await until(stream, "state", lambda state: state["nodes"][0]["lanes"][:1] and cluster.looks >= 5)
    assert state["nodes"][0]["lanes"][0]["bytes_per_s"] in (0, 2000)


async def test_a_load_that_ended_counts_once_for_the_charts() -> None:
    """However long it stays listed; those that had ended before the first look do not count."""
    cluster = Cluster(step_ms=STRETCH_MS)

    def ended(*numbers: int) -> Look:
        usage = node_usage("a")
        for number in numbers:
            usage.usage.loads.add(number=number, ended=True, first_ms=number, took_ms=10 * number)
        usage.usage.loads.add(number=9, first_ms=5)
        return look(usage)

    cluster.answer = lambda: ended(1) if cluster.looks < 3 else ended(1, 2, 3)
    async with watching(cluster) as feed, aclosing(feed.events()) as stream:
        points: list[dict[str, int]] = []
        while len(points) < 6:
            points += (await until(stream, "points"))["points"]
    assert [(point["first_ms"], point["took_ms"]) for point in points[:6]].count((0, 0)) == 5
    assert sum(point["took_ms"] for point in points) == 50


async def test_charts_go_on_where_a_lost_stream_ended() -> None:
    """Each stretch comes once; another run's id, or none, begins anew."""
    cluster = Cluster(step_ms=STRETCH_MS)
    async with watching(cluster) as feed:
        async with aclosing(feed.events()) as stream:
            first = await until(stream, "points", lambda data: data["points"])
            kind, _, last = await anext(stream)
        assert (kind, first["points"] != []) == ("state", True)
        async with aclosing(feed.events()) as other:
            for _ in range(3):
                await until(other, "points")
        async with aclosing(feed.events(last)) as stream:
            more = await until(stream, "points")
        assert (more["reset"], more["points"][0]["at_ms"]) == (False, first["points"][-1]["at_ms"] + STRETCH_MS)
        for unknown in ("", "nonsense", "1.1", f"{last}0000", "³.³"):
            async with aclosing(feed.events(unknown)) as stream:
                assert (await until(stream, "points"))["reset"]


def news(*texts: str) -> admin_pb2.WatchReply:
    return admin_pb2.WatchReply(events=[types_pb2.Event(at_ms=7, node_id="a", kind="node_lost", text=t) for t in texts])


async def test_events_come_once_and_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer who comes later gets what is kept, then what is new; the watch that was lost is taken up again, and asks
    for the past only where it has had nothing."""
    monkeypatch.setattr(happened, "_AGAIN_S", 0)
    cluster = Cluster()
    async with watching(cluster) as feed, aclosing(feed.events()) as stream:
        cluster.news.put_nowait(news("one", "two"))
        told = await until(stream, "happened", lambda told: told["events"])
        assert told["events"][0] == {"number": 1, "at_ms": 7, "node": "a", "kind": "node_lost", "text": "one"}
        cluster.news.put_nowait(admin_pb2.WatchReply(lost=1))
        cluster.news.put_nowait(news(*map(str, range(happened.SHOWN_MAX))))
        told = await until(stream, "happened")
        assert (told["reset"], told["events"][0]["text"]) == (False, "0")
        async with aclosing(feed.events()) as late:
            told = await until(late, "happened")
        assert told["reset"]
        assert [event["number"] for event in told["events"]] == list(range(3, happened.SHOWN_MAX + 3))
    assert cluster.pasts == [happened.SHOWN_MAX, 0]


async def test_a_slow_viewer_gets_the_newest_and_delays_nobody() -> None:
    """What he did not take is skipped, not kept for him."""
    cluster = Cluster()
    async with watching(cluster) as feed, aclosing(feed.events()) as slow:
        await until(slow, "state")
        async with aclosing(feed.events()) as quick:
            for _ in range(20):
                newest = await until(quick, "state")
        assert (await until(slow, "state"))["at_ms"] >= newest["at_ms"]


async def test_nobody_watching_is_looked_at_seldom() -> None:
    """Once per stretch; a viewer who comes gets a fresh look at once."""
    cluster = Cluster(step_ms=0)
    async with watching(cluster) as feed:
        await feed.state()
        await asyncio.sleep(0.2)  # a hundred times the interval
        assert cluster.looks <= 2
        async with aclosing(feed.events()) as stream:
            for _ in range(10):
                await until(stream, "state")
        assert cluster.looks > 5


async def test_viewers_are_bounded() -> None:
    """One too many is told when to come again; one who goes makes room."""
    async with watching(Cluster()) as feed:
        streams = [feed.events() for _ in range(VIEWERS_MAX)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(Refused):
            await anext(feed.events())
        await streams.pop().aclose()
        async with aclosing(feed.events()) as stream:
            await anext(stream)
        for stream in streams:
            await stream.aclose()


UNKNOWN_TIER = 77


def gone() -> Look:
    raise ControlUnavailable("gone")


def strange() -> Look:
    usage = node_usage("a")
    usage.usage.tiers.add(tier=UNKNOWN_TIER)  # type: ignore[arg-type]  (of a release that is to come)
    return look(usage)


@pytest.mark.parametrize(("answer", "says"), [(gone, "gone"), (strange, f"{UNKNOWN_TIER} is not a valid Tier")])
async def test_a_look_that_fails_is_told_and_the_last_state_stays(answer: Callable[[], Look], says: str) -> None:
    """And the next one that succeeds takes the error away."""
    cluster = Cluster()

    cluster.answer = lambda: look(node_usage("a"))
    async with watching(cluster) as feed, aclosing(feed.events()) as stream:
        await until(stream, "state", lambda state: state["nodes"])
        cluster.answer = answer
        failed = await until(stream, "state", lambda state: "error" in state)
        assert says in failed["error"]
        assert failed["nodes"][0]["id"] == "a"
        cluster.answer = look
        await until(stream, "state", lambda state: "error" not in state)


async def test_silence_has_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a look takes long, viewers hear that the server lives."""
    monkeypatch.setattr(feed_module, "BEAT_S", 0.01)
    never = asyncio.Event()

    async def ask() -> Look:
        await never.wait()
        raise AssertionError

    feed = Feed(ask, Cluster().watch, 1, lambda: 0)
    async with aclosing(feed.events()) as stream:
        assert await anext(stream) == ("", "", "")
    await feed.close()


async def test_the_end_ends_every_stream() -> None:
    """Also one that waits."""
    async with watching(Cluster()) as feed:
        stream = feed.events()
        await anext(stream)
        rest = asyncio.create_task(_rest(stream))
    assert await asyncio.wait_for(rest, 5) >= 0


async def _rest(stream: AsyncIterator[Event]) -> int:
    return len([event async for event in stream])
