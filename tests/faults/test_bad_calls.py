"""Calls that do not fit what was called before: writers, tickets, sessions and versions. All goes on after each."""

import base64
import sys
import time
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.state import Outcome
from kvstore.client import AsyncClient, buffers
from kvstore.errors import (
    Closed,
    InvalidInput,
    PermissionRefused,
    SessionLost,
    TicketInvalid,
    VersionMismatch,
)
from kvstore.pb import node_pb2, types_pb2
from tests.cluster import LAYOUT, Cluster, random_blocks
from tests.faults import other_version
from tests.faults.clients import (
    SMALL,
    Shared,
    empty_kv,
    kv_of,
    raw_calls,
    still_serves,
)
from tests.faults.engine import prompt
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


# ---- writers -----------------------------------------------------------------------------------------------------


async def test_layers_out_of_order(shared: Shared) -> None:
    """Layers come in order and once; what is wrong is refused and the put goes on where it was."""
    tokens = prompt(2, 50)
    writer = await shared.client.begin_store(tokens, kv_of(2))
    for first, count in ((1, 1), (0, 0), (0, LAYOUT.layers + 1), (-1, 1)):
        with pytest.raises(InvalidInput):
            await writer.write_layers(first, count)
    await writer.write_layers(0, 2)
    for first, count in ((0, 1), (1, 1), (3, 1), (2, 3)):
        with pytest.raises(InvalidInput):
            await writer.write_layers(first, count)
    with pytest.raises(InvalidInput, match="only 2 of 4"):
        await writer.commit()
    await writer.write_layers(2, 2)
    assert (await writer.commit()).stored == 2
    for late in (writer.commit(), writer.write_layers(0, 1)):
        with pytest.raises(Closed):
            await late
    await writer.abort()
    assert (await shared.client.match(tokens)).blocks == 2
    await still_serves(shared, 51)


async def test_layers_of_a_handoff_out_of_order(shared: Shared) -> None:
    """The node refuses marks that go back or beyond, and a commit before the last one."""
    client, tokens = shared.client, prompt(2, 52)
    writer = await client.send(await client.offer(tokens), kv_of(2))
    await writer.write_layers(0, 2)
    link = client._link
    same: dict[str, Any] = {"caller": link.caller, "session_id": link.session_id, "lease_id": writer._leases[0].id}
    for layers in (1, LAYOUT.layers + 1):
        with pytest.raises(InvalidInput):
            await link.call(link.stub.MarkLayers, node_pb2.MarkLayersRequest(**same, layers=layers))
    with pytest.raises(InvalidInput):
        await link.call(link.stub.MarkLayers, node_pb2.MarkLayersRequest(**same, layers=4, checksums=b"12345678"))
    with pytest.raises(InvalidInput):
        await link.call(link.stub.Commit, node_pb2.CommitRequest(**same, written=b"\1\1"))
    await writer.abort()
    await still_serves(shared, 53)


async def test_commit_that_does_not_fit_its_lease(shared: Shared) -> None:
    """Flags or checksums that do not fit what was granted are refused; the lease stays, and can be settled well."""
    client, tokens = shared.client, prompt(2, 54)
    writer = await client.begin_store(tokens, kv_of(2))
    await writer.write_layers(0, LAYOUT.layers)
    link = client._link
    same: dict[str, Any] = {"caller": link.caller, "session_id": link.session_id, "lease_id": writer._leases[0].id}
    for written, checksums in ((b"\1", b""), (b"\1\1\1", b""), (b"\1\1", b"123")):
        with pytest.raises(InvalidInput):
            await link.call(link.stub.Commit, node_pb2.CommitRequest(**same, written=written, checksums=checksums))
    assert (await writer.commit()).stored == 2
    await still_serves(shared, 55)


async def test_lease_of_another_session(shared: Shared) -> None:
    """A lease is renewed, committed and aborted by the session that has it, and by no other."""
    tokens = prompt(1, 56)
    writer = await shared.client.begin_store(tokens, kv_of(1))
    other = await shared.cluster.client(shared.node)
    link = other._link
    same: dict[str, Any] = {"caller": link.caller, "session_id": link.session_id, "lease_id": writer._leases[0].id}
    for method, request in (
        (link.stub.MarkLayers, node_pb2.MarkLayersRequest(**same, layers=1)),
        (link.stub.Commit, node_pb2.CommitRequest(**same, written=b"\1")),
        (link.stub.Abort, node_pb2.AbortRequest(**same)),
    ):
        with pytest.raises(PermissionRefused):
            await link.call(method, request)
    await writer.write_layers(0, LAYOUT.layers)
    assert (await writer.commit()).stored == 1
    await still_serves(shared, 57)


async def test_read_only_session(shared: Shared) -> None:
    """A read-only client loads, and neither stores nor sends."""
    tokens, source = prompt(2, 58), random_blocks(LAYOUT, 2, 58)
    await shared.client.store(tokens, buffers.contiguous(source, LAYOUT))
    reader = await AsyncClient.connect(
        node=shared.node.socket, namespace=shared.client.namespace, layout=LAYOUT, read_only=True
    )
    async with reader:
        for call in (reader.store, reader.begin_store):
            with pytest.raises(PermissionRefused):
                await call(prompt(2, 59), kv_of(2))
        ticket = await shared.client.offer(prompt(1, 59), deadline_s=0.1)
        with pytest.raises(PermissionRefused):
            await reader.send(ticket, kv_of(1), prompt(1, 59))
        target = np.zeros_like(source)
        assert (await reader.load(reader.chain(tokens), buffers.contiguous(target, LAYOUT)).result()).blocks == 2
        assert np.array_equal(source, target)
        slab = next(iter(reader._link.slabs._slabs.values()))
        assert not slab.data.flags.writeable
    await still_serves(shared, 60)


# ---- tickets -----------------------------------------------------------------------------------------------------


def _forged(shared: Shared, ticket: bytes) -> str:
    handoff = node_pb2.HandoffTicket(tickets=[ticket], node=shared.client._link.node)
    return base64.urlsafe_b64encode(handoff.SerializeToString()).decode()


@pytest.mark.parametrize("ticket", ["", "nonsense", "%%%", "é", base64.urlsafe_b64encode(b"\x0a\xff").decode()])
async def test_garbage_for_a_ticket(shared: Shared, ticket: str) -> None:
    """What is no ticket is refused at once, by sender and receiver."""
    with pytest.raises(TicketInvalid):
        await shared.client.send(ticket, kv_of(1), prompt(1, 70))
    with pytest.raises(TicketInvalid):
        shared.client.receive(ticket, empty_kv(1), prompt(1, 70))
    await still_serves(shared, 71 + len(ticket))


async def test_ticket_that_was_never_offered(shared: Shared) -> None:
    """A ticket of the right form that its node does not know."""
    for forged in (_forged(shared, b"t" * 16), _forged(shared, b"short")):
        with pytest.raises(TicketInvalid):
            await shared.client.send(forged, kv_of(1), prompt(1, 80))
        with pytest.raises(TicketInvalid):
            await shared.client.receive(forged, empty_kv(1), prompt(1, 80)).result()
    await still_serves(shared, 81)


async def test_ticket_that_was_used(shared: Shared) -> None:
    """A ticket has one writer and one receiver; those who come later are refused, the first are not disturbed."""
    tokens, source = prompt(2, 82, tail=20), random_blocks(LAYOUT, 3, 82)
    kv, target = buffers.contiguous(source, LAYOUT), np.zeros_like(source)
    ticket = await shared.client.offer(tokens)
    writer = await shared.client.send(ticket, kv)
    with pytest.raises(TicketInvalid):
        await shared.client.send(ticket, kv, tokens)
    with pytest.raises(TicketInvalid):
        await shared.client.send(ticket, kv)
    receiving = shared.client.receive(ticket, buffers.contiguous(target, LAYOUT), tokens)
    await writer.write_layers(0, 2)
    with pytest.raises(TicketInvalid):
        await eventually(lambda: shared.client.receive(ticket, empty_kv(3), tokens).result())
    await writer.write_layers(2, 2)
    await writer.commit()
    result = await receiving.result()
    assert (result.blocks, result.tail) == (2, True)
    assert np.array_equal(target[:2], source[:2])
    for late in (shared.client.receive(ticket, empty_kv(3), tokens).result(), shared.client.send(ticket, kv, tokens)):
        with pytest.raises(TicketInvalid):
            await late
    await still_serves(shared, 83)


async def test_ticket_past_its_deadline(built: Cluster) -> None:
    """After its deadline a ticket is as good as unknown, however late the node gets round to sweeping."""
    node = await built.node("lazy", compute_kind="loopback", **{**SMALL, "tick_ms": "60000"})
    client = await built.client(node)
    ticket = await client.offer(prompt(1, 84), deadline_s=0.02)
    over_s = time.monotonic() + 0.02
    await eventually(lambda: time.monotonic() > over_s)
    with pytest.raises(TicketInvalid):
        await client.send(ticket, kv_of(1))
    with pytest.raises(TicketInvalid):
        await client.receive(ticket, empty_kv(1), prompt(1, 84)).result()
    assert (await built.usage(node)).counters["handoffs"] == 1


async def test_ticket_of_another_prompt(shared: Shared) -> None:
    """Sender and receiver have to name the prompt that was offered."""
    client = shared.client
    ticket = await client.offer(prompt(2, 86), deadline_s=0.2)
    with pytest.raises(InvalidInput, match="chain"):
        await client.send(ticket, kv_of(2), prompt(2, 87))
    with pytest.raises(InvalidInput, match="chain"):
        await client.receive(ticket, empty_kv(2), prompt(2, 87)).result()
    await still_serves(shared, 88)


# ---- sessions and versions ---------------------------------------------------------------------------------------


async def test_wrong_session_id(shared: Shared) -> None:
    """A session that the node does not know is SessionLost at the wire, and healed by the client's next call."""
    before = (await shared.cluster.usage(shared.node)).counters["sessions"]
    client = await shared.cluster.client(shared.node)
    client._link.session_id = b"?" * 16
    answers = await raw_calls(client, client.namespace.id, b"k" * 16)
    assert {name: type(error) for name, error in answers.items() if name != "load"} == {
        name: SessionLost for name in answers if name != "load"
    }
    client._link.session_id = b"?" * 16
    assert (await client.store(prompt(1, 90), kv_of(1))).stored == 1
    client._link.session_id = b"?" * 16
    assert (await client.load(client.chain(prompt(1, 90)), empty_kv(1)).result()).blocks == 1
    await client.close()
    await eventually(lambda: sessions_are(shared, before))
    await still_serves(shared, 91)


async def sessions_are(shared: Shared, count: int) -> bool:
    return (await shared.cluster.usage(shared.node)).counters["sessions"] == count


async def test_session_of_no_process(shared: Shared) -> None:
    """A session is bound to a process that exists."""
    link = shared.client._link
    for pid in (0, -1, 2**22 + 1, 2**31 - 1):
        with pytest.raises(InvalidInput):
            await link.call(link.stub.Attach, node_pb2.AttachRequest(caller=link.caller, pid=pid, tenant="default"))
    with pytest.raises(InvalidInput):
        await link.call(link.stub.Attach, node_pb2.AttachRequest(caller=link.caller, pid=1, tenant=""))
    await still_serves(shared, 92)


async def test_client_of_another_version(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that speaks another protocol is told so, by unary calls and streams alike."""
    monkeypatch.setattr("kvstore.rpc.channel.PROTOCOL_VERSION", other_version.VERSION)
    with pytest.raises(VersionMismatch, match="same kvstore release"):
        await AsyncClient.connect(node=shared.node.socket, namespace=shared.client.namespace, layout=LAYOUT)
    link = shared.client._link
    foreign = types_pb2.Caller(protocol_version=other_version.VERSION)
    with monkeypatch.context() as patch:
        patch.setattr(link, "caller", foreign)
        answers = await raw_calls(shared.client, shared.client.namespace.id, b"k" * 16)
        assert {name: type(error) for name, error in answers.items()} == dict.fromkeys(answers, VersionMismatch)
        with pytest.raises(VersionMismatch):
            await shared.client.match(prompt(1, 93))
    call = link.stub.Transfer(timeout=2)
    await call.write(node_pb2.TransferUp(open=node_pb2.TransferOpen(caller=foreign)))
    assert dict(await call.trailing_metadata())["kvstore-error"] == "VersionMismatch"
    monkeypatch.undo()
    await still_serves(shared, 94)


async def test_node_of_another_version_than_its_control_plane(
    built: Cluster, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken into the cluster, goes on for its own clients, and tells them why match does not work."""
    launcher = (sys.executable, other_version.__file__)
    node = await built.node("newer", shared.control.address, launcher, compute_kind="loopback")
    with pytest.raises(VersionMismatch):
        await built.client(node)
    monkeypatch.setattr("kvstore.rpc.channel.PROTOCOL_VERSION", other_version.VERSION)
    client = await built.client(node)
    tokens, source = prompt(2, 95), random_blocks(LAYOUT, 2, 95)
    target = np.zeros_like(source)
    assert (await client.store(tokens, buffers.contiguous(source, LAYOUT))).stored == 2
    assert (await client.load(client.chain(tokens), buffers.contiguous(target, LAYOUT)).result()).blocks == 2
    assert np.array_equal(source, target)
    with pytest.raises(VersionMismatch):
        await client.match(tokens)
    monkeypatch.undo()
    assert (await shared.client.match(tokens)).blocks == 0
    await still_serves(shared, 96)


# ---- layers of one load ------------------------------------------------------------------------------------------


async def test_ranges_of_a_load_that_are_none(shared: Shared) -> None:
    """First blocks beyond the match, negative groups and layers that do not exist are refused by the client."""
    client, tokens = shared.client, prompt(2, 97)
    await client.store(tokens, kv_of(2))
    chain = client.chain(tokens)
    for first_block in (-1, 3):
        with pytest.raises(InvalidInput):
            client.load(chain, empty_kv(2), first_block=first_block)
        with pytest.raises(InvalidInput):
            await client.store(chain, kv_of(2), first_block=first_block)
    with pytest.raises(InvalidInput):
        client.load(chain, empty_kv(2), group_layers=-1)
    load = client.load(chain, empty_kv(2))
    for layer in (-1, LAYOUT.layers):
        with pytest.raises(InvalidInput):
            await load.wait_layer(layer)
    result = await load.result()
    assert (result.blocks, [m.outcome for m in result.missing]) == (2, [])
    missing = (await client.load(client.chain(prompt(1, 98)), empty_kv(1)).result()).missing
    assert [m.outcome for m in missing] == [Outcome.MISSING]
    await still_serves(shared, 99)
