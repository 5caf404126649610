"""Rules on a running node: from its file, its clients, an operator; and what a probe extends."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from kvstore.cli.main import main
from kvstore.client import AsyncClient, buffers
from kvstore.errors import InvalidInput
from kvstore.node.app import NodeServer
from kvstore.pb import admin_pb2, admin_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, random_blocks, whole_match
from tests.inprocess import SECOND_NS, Site, tokens
from tests.waiting import eventually

BLOCKS = 3
HOUR_S = 3600


async def store(client: AsyncClient, **options: float) -> None:
    kv = buffers.contiguous(random_blocks(LAYOUT, BLOCKS), LAYOUT)
    assert (await client.store(tokens(BLOCKS), kv, **options)).stored == BLOCKS


def deadlines(node: NodeServer) -> list[int]:
    """Of all that a node holds, on its own clock."""
    return sorted(record.remaining_ns for record in node.catalog.records(range(256), 0))


def remaining_s(node: NodeServer) -> list[int]:
    """In whole seconds, rounded up."""
    return [-(-(deadline_ns - node.custody.clock()) // SECOND_NS) for deadline_ns in deadlines(node)]


def all_are(seconds: Iterable[int], expected: int) -> bool:
    return all(expected - 30 <= each <= expected for each in seconds)


async def change(control: str, pattern: str, **fields: int) -> admin_pb2.AdminSetRulesReply:
    request = admin_pb2.AdminSetRulesRequest(caller=caller("test"), pattern=pattern, rules=types_pb2.Rules(**fields))
    async with open_channel(control) as channel:
        return await admin_pb2_grpc.AdminStub(channel).SetRules(request, timeout=5)


async def test_the_file_bounds_what_clients_ask_for(here: Site) -> None:
    """The namespace's time and each store's."""
    node = await here.node(namespaces={"te*": {"ttl_ms_max": 60_000}})
    client = await here.client(node, ttl_s=HOUR_S)
    await store(client, ttl_s=2 * HOUR_S)
    assert all_are(remaining_s(node), 60)


async def test_a_client_asks_for_rules(here: Site) -> None:
    """Times and more; but for bounds, and rules that are none, it is refused before anything is sent."""
    node = await here.node()
    client = await here.client(node, ttl_s=HOUR_S, rules={"ttl_kind": "fixed", "copies": 2})
    (held,) = node.retention.listed().namespaces
    assert (held.rules.ttl_ms, held.rules.ttl_kind, held.rules.copies) == (HOUR_S * 1000, "fixed", 2)
    await store(client)
    before = deadlines(node)
    await client.unhold((await client.match(tokens(BLOCKS), hold_s=1)).hold_id)
    assert deadlines(node) == before
    for bad in ({"ttl_ms_max": 5}, {"copys": 2}):
        with pytest.raises(InvalidInput):
            await here.client(node, rules=bad)


async def test_an_operator_changes_rules_while_blocks_are_there(here: Site) -> None:
    """Known to the node when the call returns; blocks follow with their next touch, also later nodes'."""
    control = await here.control()
    node = await here.node(control=control.address)
    client = await here.client(node)
    await store(client)
    await eventually(lambda: whole_match(client, tokens(BLOCKS)))
    reply = await change(control.address, "test", ttl_ms=HOUR_S * 1000)
    assert [reached.error for reached in reply.nodes] == [""]
    assert all_are(remaining_s(node), HOUR_S // 2)
    await client.unhold((await client.match(tokens(BLOCKS), hold_s=1)).hold_id)
    assert all_are(remaining_s(node), HOUR_S)

    late = await here.node(control=control.address)
    await eventually(lambda: late.retention.version == reply.book.version)
    await store(await here.client(late))
    assert all_are(remaining_s(late), HOUR_S)


async def test_a_probe_extends_only_where_rules_say_so(here: Site) -> None:
    """A match alone extends nothing; under the rule it does at every owner, and pins nothing after it."""
    control = await here.control()
    owner, reader = [await here.node(control=control.address) for _ in range(2)]
    await store(await here.client(owner))
    client = await here.client(reader)
    before = deadlines(owner)
    await eventually(lambda: whole_match(client, tokens(BLOCKS)))
    assert deadlines(owner) == before

    probing = await here.client(reader, rules={"probe_extends": True})
    assert (await probing.match(tokens(BLOCKS))).blocks == BLOCKS
    assert min(deadlines(owner)) > max(before)


async def test_a_local_probe_extends_only_where_rules_say_so(here: Site) -> None:
    """The node's own answer, also when an operator sets the rule afterwards."""
    node = await here.node()
    client = await here.client(node)
    await store(client)
    before = deadlines(node)
    await client.match(tokens(BLOCKS))
    assert deadlines(node) == before
    node.retention.set(types_pb2.RuleBook(version=1, rules={"test": types_pb2.Rules(probe_extends=True)}))
    await client.match(tokens(BLOCKS))
    assert min(deadlines(node)) > max(before)


def test_a_file_whose_rules_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The node does not start, and says where."""
    path = tmp_path / "kvstore.toml"
    path.write_text('[namespaces."llama-*"]\ntll_ms = 5\n')
    assert main(["node", "--config", str(path)]) == 2
    assert "namespaces: rules of 'llama-*': unknown rule 'tll_ms': did you mean 'ttl_ms'?" in capsys.readouterr().err
