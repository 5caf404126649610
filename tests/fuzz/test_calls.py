"""Calls of any kind: nothing crashes, hangs, leaks, or answers who has no rights.

A failure shows the calls that were under way; all of them follow from a seed. `scripts/fuzz` goes on for longer.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from kvstore.node.app import NodeServer
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from tests.certs import Certs
from tests.cluster import LAYOUT, open_descriptors, random_blocks
from tests.fuzz.amounts import SECONDS, Until, explore
from tests.fuzz.calls import ANYONE, DEADLINE_S, METHODS, REFUSALS, STREAM_S, Call, calls, known_to, send
from tests.fuzz.messages import Known
from tests.inprocess import Site, at_rest, site, tokens
from tests.waiting import eventually

SHORT = {"hold_ms_max": 200, "lease_ms": 200, "connect_ms": 100, "progress_ms": 100, "tick_ms": 20}
Recorder = Callable[[str, object], None]
pytestmark = pytest.mark.timeout(SECONDS + 120)


class Complaints(logging.Handler):
    """Collects what a server logs of its own failures, and what the event loop finds in tasks that nobody awaits."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.said.append(self.format(record))


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[Complaints]:
    """Fails the test that uses it where there were any. Levels that were changed over the wire are set back."""
    handler, watched = Complaints(), [logging.getLogger(name) for name in ("kvstore", "asyncio", "grpc")]
    levels = [logger.level for logger in watched]
    for logger in watched:
        logger.addHandler(handler)
        monkeypatch.setattr(logger, "propagate", False)
    yield handler
    for logger, level in zip(watched, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert handler.said == []


async def test_calls_to_a_node(tmp_path: Path, complaints: Complaints, record_property: Recorder) -> None:
    """By a client that has blocks there, and by others. Afterwards the node holds nothing, and serves."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", control=control.address, **SHORT)
        client = await stored(here, node)
        before = Held()
        record_property("inputs", await fuzzed(node.socket, "Node", client))
        await rest(before, node, client)
        async with open_channel(node.socket) as channel:  # a call among them may have begun to empty it
            ended = node_pb2.DrainRequest(caller=caller("test"), action=node_pb2.DRAIN_ACTION_END)
            await node_pb2_grpc.NodeStub(channel).Drain(ended, timeout=DEADLINE_S)
        await stored(here, node, "of which no rule was set")


async def test_calls_to_a_control_plane(tmp_path: Path, complaints: Complaints, record_property: Recorder) -> None:
    """By nodes and clients. Afterwards it still answers."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", **SHORT)
        client = await stored(here, node)
        before = Held()
        record_property("inputs", await fuzzed(control.address, "Control", client))
        await rest(before, node, client)


async def test_calls_of_operators(tmp_path: Path, complaints: Complaints, record_property: Recorder) -> None:
    """With a node that lives and one that does not."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", control=control.address, **SHORT)
        client = await stored(here, node)
        before = Held()
        record_property("inputs", await fuzzed(control.address, "Admin", client))
        await rest(before, node, client)


async def test_nobody_without_rights_is_answered(
    tmp_path: Path, complaints: Complaints, record_property: Recorder
) -> None:
    """Behind a shut door, with a client's certificate and no token: every call is refused, whatever it says."""
    certs = Certs(tmp_path / "certs")
    certs.holder("acme", tenant="acme")
    async with site(tmp_path) as here:
        control = await here.control(certs.server("control"))
        node = await here.node(door=certs.server("node"), control=control.address)
        door = certs.door("client")
        async with (
            open_channel(control.address, door=door, serves=Role.CONTROL) as far,
            open_channel(node.address, door=door) as near,
        ):

            async def refused(made: list[Call]) -> None:
                channels = [near if call.rpc.startswith("Node/") else far for call in made]
                answers = await asyncio.gather(*map(send, channels, made, repeat(DEADLINE_S)))
                told = {(call.rpc, answer) for call, answer in zip(made, answers, strict=True)}
                assert [each for each in told if each[1] not in REFUSALS] == []

            record_property("inputs", await explored(list(METHODS), ANYONE, refused))


class Held:
    """What the process holds now; compared with what it holds later."""

    def __init__(self) -> None:
        self.descriptors = open_descriptors(os.getpid())
        self.tasks = len(asyncio.all_tasks())


async def rest(before: Held, node: NodeServer, client: AsyncClient) -> None:
    """Waits until nothing is left of the calls: no pin, lease or handoff, no session, no task, no
    descriptor (some connections stay open for a while)."""
    await client.close()
    await eventually(lambda: not len(node.sessions), deadline_s=10)
    await at_rest(node)
    await eventually(lambda: len(asyncio.all_tasks()) <= before.tasks + 8, deadline_s=10)
    await eventually(lambda: open_descriptors(os.getpid()) <= before.descriptors + 40, deadline_s=10)


async def stored(here: Site, node: NodeServer, model: str = "test") -> AsyncClient:
    """A client that has stored a prompt."""
    client = await here.client(node, namespace=Namespace.of(model, LAYOUT))
    done = await client.store(tokens(8), buffers.contiguous(random_blocks(LAYOUT, 8), LAYOUT))
    assert done.stored + done.present == 8
    return client


async def fuzzed(address: str, service: str, client: AsyncClient) -> int:
    """Sends a service what a client of it could; how many calls there were. Says how often each answer came."""
    rpcs = [rpc for rpc in METHODS if rpc.startswith(f"{service}/")]
    answers = Counter[str]()
    async with open_channel(address) as channel:

        async def answered(made: list[Call]) -> None:
            answers.update(await asyncio.gather(*map(send, repeat(channel), made, repeat(STREAM_S))))

        count = await explored(rpcs, known_to(client), answered)
    print(f"{service}: {dict(answers)}")
    return count


async def explored(rpcs: list[str], known: Known, sent: Callable[[list[Call]], Coroutine[Any, Any, None]]) -> int:
    """Hypothesis makes calls in a thread, they are sent from here: how many."""
    loop, until = asyncio.get_running_loop(), Until(seconds=SECONDS)

    def run(made: list[Call]) -> int:
        asyncio.run_coroutine_threadsafe(sent(made), loop).result()
        return len(made)

    await sent([Call(rpc, [b""]) for rpc in rpcs])  # each of them, however short the time is
    await asyncio.to_thread(explore, calls(rpcs, known), run, until)
    return until.done
