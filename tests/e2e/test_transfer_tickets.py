"""Transfers behind a shut door: between nodes that are registered, and nobody else, while keys come and go."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from kvstore.client import AsyncClient, buffers
from kvstore.control import keyring
from kvstore.control.app import ControlServer
from kvstore.errors import Unauthenticated
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.node.app import NodeServer
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.metadata import adding
from kvstore.rpc.status import from_rpc
from kvstore.rpc.transfer_tickets import METADATA_KEY, Key, sign
from tests.certs import Certs
from tests.cluster import LAYOUT, random_blocks, whole_match
from tests.inprocess import Site, fabric_of, site, tokens
from tests.waiting import eventually

BLOCKS = 4
PROMPT = tokens(BLOCKS)
CONTENT = random_blocks(LAYOUT, BLOCKS)


class Pair:
    """An owner that has stored a prompt, and a reader."""

    def __init__(self, here: Site, certs: Certs, folder: Path) -> None:
        self.here = here
        self.certs = certs
        self.folder = folder
        self.control: ControlServer
        self.owner: NodeServer
        self.reader: NodeServer
        self.far: AsyncClient

    async def start(self) -> None:
        self.control = await self.serve_control()
        self.owner, self.reader = [await self.node() for _ in range(2)]
        near = await self.here.client(self.owner)
        self.far = await self.here.client(self.reader, door=self.certs.door("client"))
        await near.store(PROMPT, buffers.contiguous(CONTENT, LAYOUT))
        await eventually(lambda: whole_match(self.far, PROMPT))

    async def serve_control(self, listen: str = "127.0.0.1:0") -> ControlServer:
        return await self.here.control(
            self.certs.door("control"), listen=listen, heartbeat_ms=20, index_path=str(self.folder / "index")
        )

    async def node(self) -> NodeServer:
        return await self.here.node(door=self.certs.door("node"), control=self.control.address, publish_ms=1)

    async def loads(self) -> bool:
        """Whether the reader gets the owner's blocks."""
        landed = np.zeros_like(CONTENT)
        match = await eventually(lambda: whole_match(self.far, PROMPT))
        done = await self.far.load(match, buffers.contiguous(landed, LAYOUT)).result()
        return done.blocks == BLOCKS and bool((landed == CONTENT).all())


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with site(tmp_path) as here:
        built = Pair(here, Certs(tmp_path / "certs"), tmp_path)
        await built.start()
        yield built


async def admitted(pair: Pair, *metadata: tuple[str, str | bytes]) -> bool:
    """Whether the owner pins and sends its blocks for one who has a node's certificate and shows this. Both or neither;
    to one whom it refuses it does not connect."""
    chain, fabric = pair.far.chain(PROMPT), fabric_of(pair.owner)
    about = {"namespace_id": chain.namespace_id, "keys": b"".join(chain.keys), "wanted": b"\1" * BLOCKS}
    about |= {"caller": caller("mallory"), "shard_count": 1}
    connected, answers, receiver = len(fabric._peers), [], LoopbackFabric()
    opened = node_pb2.TransferOpen(**about, fabric_address=receiver.address, deadline_ms=5000)
    async with open_channel(pair.owner.address, door=pair.certs.door("node")) as channel:
        stub = node_pb2_grpc.NodeStub(adding(channel, lambda: metadata))
        for call in (
            stub.Pin(node_pb2.PinRequest(**about, hold_ms=1000), timeout=5),
            all_of(stub.Transfer(iter([node_pb2.TransferUp(open=opened)]), timeout=5)),
        ):
            try:
                await call
                answers.append(True)
            except grpc.aio.AioRpcError as error:
                if not isinstance(from_rpc(error), Unauthenticated):
                    raise
                answers.append(False)
    await receiver.close()
    assert len(set(answers)) == 1
    assert len(fabric._peers) - connected == answers[1]
    return answers[0]


async def all_of(call: "grpc.aio.StreamStreamCall[node_pb2.TransferUp, node_pb2.TransferDown]") -> None:
    async for _ in call:
        pass


async def test_registered_nodes_transfer(pair: Pair) -> None:
    """Each shows the ticket that it got when it registered."""
    assert await pair.loads()


async def test_a_nodes_certificate_alone_is_not_enough(pair: Pair) -> None:
    """Nor a ticket of another key, nor one that was changed."""
    key = Key(pair.owner.keys.newest, bytes(32))
    (_, own), *_ = pair.reader.keys.shown()
    assert isinstance(own, bytes)
    assert not await admitted(pair)
    assert not await admitted(pair, (METADATA_KEY, sign(key, "mallory", 1)))
    assert not await admitted(pair, (METADATA_KEY, own[:-1] + bytes([own[-1] ^ 1])))
    assert not await admitted(pair, (METADATA_KEY, b""))
    assert await admitted(pair, (METADATA_KEY, own))


class Trap(grpc.GenericRpcHandler):
    """Answers no call, and keeps what was shown with it."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str | bytes]] = []

    def service(self, details: Any) -> None:
        self.shown += details.invocation_metadata


@pytest.mark.parametrize("kind", ["unix:", "unix://"])
async def test_tickets_are_shown_to_nodes_alone(pair: Pair, tmp_path: Path, kind: str) -> None:
    """A client says where its blocks are; a socket of its own that it names instead gets nothing, though a unix socket
    asks for no certificate elsewhere."""
    trap, server = Trap(), grpc.aio.server()
    server.add_generic_rpc_handlers([trap])
    server.add_insecure_port(f"unix:{tmp_path}/trap")
    await server.start()
    match = await whole_match(pair.far, PROMPT)
    assert match is not None
    named = [replaced(node, grpc=f"{kind}{tmp_path}/trap") for node in match.locations.nodes]
    lured = replace(match, locations=replace(match.locations, nodes=tuple(named)))
    held = await pair.far._hold(lured, 5.0)
    loaded = await pair.far.load(lured, buffers.contiguous(np.zeros_like(CONTENT), LAYOUT)).result()
    await server.stop(0)
    assert held.blocks == loaded.blocks == 0
    assert trap.shown == []


def replaced(node: types_pb2.NodeAddress, **fields: Any) -> types_pb2.NodeAddress:
    changed = types_pb2.NodeAddress()
    changed.CopyFrom(node)
    changed.MergeFrom(types_pb2.NodeAddress(**fields))
    return changed


async def test_keys_rotate_under_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads go on through rotations; a ticket of long ago is worth nothing."""
    (old, *_) = pair.reader.keys.shown()
    last = pair.reader.keys.newest
    monkeypatch.setattr(keyring, "ROTATE_S", 0.1)

    async def rotated() -> bool:
        return pair.reader.keys.newest != last

    for rotations in range(1, 5):
        await eventually(rotated)
        last = pair.reader.keys.newest
        assert await pair.loads(), f"after {rotations} rotations"
    monkeypatch.setattr(keyring, "ROTATE_S", 3600.0)
    assert not await admitted(pair, old)


async def test_a_control_plane_that_was_started_anew(pair: Pair) -> None:
    """Has other keys; the nodes go on with those they have, alone and one by one, and take the new ones."""
    before = pair.owner.keys.newest
    await pair.control.stop()
    pair.control = await pair.serve_control(pair.control.address)

    async def heard() -> bool:
        return before not in (pair.owner.keys.newest, pair.reader.keys.newest)

    await eventually(heard)
    assert await pair.loads()
