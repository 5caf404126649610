"""Rules that operators set: kept in the index, told to every node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore import errors
from kvstore.config import ControlConfig
from kvstore.control.app import ControlServer, serve
from kvstore.control.index.memory import MemoryIndex
from kvstore.control.rules import PATTERNS_MAX, SetRules
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.rules import rules_message, rules_of
from kvstore.rpc.status import from_rpc
from tests.answering import answering
from tests.control.conftest import DEADLINE_S, FakeNode

CALLER = caller("test")


class Follower(node_pb2_grpc.NodeServicer):
    """A node that remembers what it is told."""

    book = types_pb2.RuleBook()

    async def SetRules(self, request: node_pb2.SetRulesRequest, context: Any) -> node_pb2.SetRulesReply:
        self.book = request.book
        return node_pb2.SetRulesReply()

    async def GetRules(self, request: node_pb2.GetRulesRequest, context: Any) -> node_pb2.GetRulesReply:
        return node_pb2.GetRulesReply(book=self.book)


@pytest.fixture
async def follower(tmp_path: Path, control: control_pb2_grpc.ControlStub) -> AsyncIterator[Follower]:
    """A registered node."""
    follower = Follower()
    async with answering(tmp_path, follower) as address:
        await FakeNode(control, node_id="near", grpc=address).register()
        yield follower


async def change(admin: admin_pb2_grpc.AdminStub, pattern: str, **fields: Any) -> admin_pb2.AdminSetRulesReply:
    request = admin_pb2.AdminSetRulesRequest(caller=CALLER, pattern=pattern, rules=rules_message(fields))
    return await admin.SetRules(request, timeout=DEADLINE_S)


def said(book: types_pb2.RuleBook) -> dict[str, dict[str, Any]]:
    return {pattern: rules_of(rules) for pattern, rules in book.rules.items()}


async def beat(node: FakeNode, version: int) -> control_pb2.HeartbeatReply:
    request = control_pb2.HeartbeatRequest(
        caller=CALLER, node_id=node.node_id, incarnation=node.incarnation, rules_version=version
    )
    return await node.stub.Heartbeat(request, timeout=DEADLINE_S)


async def test_a_change_reaches_all_nodes(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, follower: Follower
) -> None:
    """At once where a node answers; one that does not is named. What is not named in a change stays."""
    await FakeNode(control, node_id="far").register()
    await change(admin, "llama", ttl_ms=5, copies=2)
    reply = await change(admin, "llama", copies=3)
    assert said(reply.book) == said(follower.book) == {"llama": {"ttl_ms": 5, "copies": 3}}
    reached = {node.node_id: node.error for node in reply.nodes}
    assert (reached["near"], reached["far"] != "") == ("", True)


async def test_a_node_that_was_not_reached_follows_by_its_heartbeat(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, node: FakeNode
) -> None:
    """The book comes when its version is not the node's, and then no more; one that registers gets it with that."""
    version = (await node.register()).rules.version
    assert version == 0
    book = (await change(admin, "llama", copies=3)).book
    assert (await beat(node, version)).rules == book
    assert not (await beat(node, book.version)).HasField("rules")
    assert (await FakeNode(control, node_id="late").register()).rules == book


async def test_rules_are_remembered(config: ControlConfig, server: ControlServer) -> None:
    """A control plane that restarts has them in its index."""
    async with open_channel(server.address) as channel:
        book = (await change(admin_pb2_grpc.AdminStub(channel), "llama", copies=3)).book
    await server.stop()
    again = await serve(config)
    async with open_channel(again.address) as channel:
        assert (await FakeNode(control_pb2_grpc.ControlStub(channel)).register()).rules == book
    await again.stop()


async def test_what_is_removed_is_not_set(admin: admin_pb2_grpc.AdminStub, follower: Follower) -> None:
    """Other patterns stay; a pattern of which nothing is set cannot be removed."""
    await change(admin, "llama", copies=3)
    await change(admin, "qwen", copies=2)
    request = admin_pb2.AdminSetRulesRequest(caller=CALLER, pattern="llama", remove=True)
    await admin.SetRules(request, timeout=DEADLINE_S)
    assert said(follower.book) == {"qwen": {"copies": 2}}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await admin.SetRules(request, timeout=DEADLINE_S)
    assert isinstance(from_rpc(raised.value), errors.InvalidInput)


@pytest.mark.parametrize(
    ("pattern", "fields", "expected"),
    [
        ("llama", {"copies": 99}, "copies: 99 is not from 1"),
        ("llama", {"ttl_ms": 0}, "a positive time is needed"),
        ("llama", {"ttl_ms_min": 9}, "no time is from"),  # its ttl_ms_max is 5
        ("llama", {}, "nothing is to be set"),
        ("", {"copies": 2}, "a pattern has 1 to"),
    ],
)
async def test_rules_that_cannot_be_are_refused(
    admin: admin_pb2_grpc.AdminStub, follower: Follower, pattern: str, fields: dict[str, Any], expected: str
) -> None:
    """With all that is set already; and nothing is changed."""
    before = (await change(admin, "llama", ttl_ms_max=5)).book
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await change(admin, pattern, **fields)
    assert isinstance(from_rpc(raised.value), errors.InvalidInput)
    assert expected in (raised.value.details() or "")
    asked = admin_pb2.AdminGetRulesRequest(caller=CALLER)
    assert (await admin.GetRules(asked, timeout=DEADLINE_S)).book == follower.book == before


async def test_what_holds_is_asked_of_every_node(
    control: control_pb2_grpc.ControlStub, admin: admin_pb2_grpc.AdminStub, follower: Follower
) -> None:
    """One that does not answer is named with the reason."""
    await FakeNode(control, node_id="far").register()
    await change(admin, "llama", copies=3)
    reply = await admin.GetRules(admin_pb2.AdminGetRulesRequest(caller=CALLER), timeout=DEADLINE_S)
    nodes = {node.node_id: node for node in reply.nodes}
    assert nodes["near"].rules.book == reply.book
    assert nodes["far"].error


async def test_changes_at_the_same_time_are_all_kept() -> None:
    """Two control planes over one index: neither overwrites the other's."""
    index = Slow()
    one, two = SetRules(index, lambda: 7), SetRules(index, lambda: 7)
    await asyncio.gather(*(rules.change(f"m{i}", {"copies": 2}) for i, rules in enumerate((one, two, one, two))))
    book = await one.book()
    assert (len(book.rules), book.version) == (4, 10)


async def test_patterns_are_bounded() -> None:
    """A book travels with every registration."""
    rules = SetRules(MemoryIndex(), lambda: 0)
    for number in range(PATTERNS_MAX):
        await rules.change(f"m{number}", {"copies": 2})
    with pytest.raises(errors.TooLarge):
        await rules.change("one more", {"copies": 2})
    assert len((await rules.book()).rules) == PATTERNS_MAX


class Slow(MemoryIndex):
    """Others run between reading and writing."""

    async def document(self, name: str) -> bytes:
        found = await super().document(name)
        await asyncio.sleep(0)
        return found
