"""Every call of every service, by everybody: exactly those pass who are meant to. Real servers, real certificates."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from kvstore.cli.tokens import revoke_token
from kvstore.config import DoorConfig
from kvstore.control.keyring import KeyRing
from kvstore.pb import admin_pb2, control_pb2, node_pb2, types_pb2
from kvstore.rpc.access import ACCESS
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import OPEN_DOOR, open_channel
from kvstore.rpc.metadata import adding
from kvstore.rpc.transfer_tickets import METADATA_KEY
from tests.certs import Certs
from tests.inprocess import site

DEADLINE_S = 5.0
KEYS = KeyRing().told_to(types_pb2.NodeAddress(node_id="other", incarnation=1))
SERVICES = {
    service.name: service
    for file in (control_pb2, admin_pb2, node_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
SHARED = ["Health", "ServerReflection"]
SERVED = {"control": ["Control", "Admin", *SHARED], "node": ["Node", *SHARED]}


def calls(service: str, names: str) -> set[str]:
    return {f"{service}/{name}" for name in names.split()}


EVERYBODY = calls("Health", "Check Watch") | calls("ServerReflection", "ServerReflectionInfo")
NODES = calls("Control", "Register Heartbeat Publish CompareBuckets Holders")
PEERS = calls("Node", "Pin Unpin Locate Transfer Replicate Shed")
ENGINES = calls("Control", "Match") | calls(
    "Node", "Attach OpenNamespace LocalMatch Reserve MarkLayers Commit Abort Hold Offer Load Unpin Declined"
)
READS = calls("Admin", "Stats Nodes PrefixBlocks Explain KeySeed GetRules GetQuotas Pins Watch ListBlocks") | calls(
    "Node", "Usage GetRules Explain ListBlocks OperatorPins"
)
CHANGES = calls("Admin", "SetRules SetDevice Adopt Scrub SetLogLevel Drain Pin Unpin Purge SetQuota") | calls(
    "Node", "SetDevice Adopt Scrub SetLogLevel Drain"
)
ASKED_BY_CONTROL = calls(
    "Node",
    "Usage GetRules Explain ListBlocks OperatorPins SetRules SetDevice Adopt Scrub SetLogLevel Drain"
    " PinForOperator UnpinForOperator Purge",
)
MAY: dict[str, set[str]] = {
    "nobody": set(),
    "stranger": set(),
    "node": EVERYBODY | NODES,
    "registered node": EVERYBODY | NODES | PEERS,
    "control": EVERYBODY | ASKED_BY_CONTROL,
    "no token": EVERYBODY,
    "revoked token": EVERYBODY,
    "tenant": EVERYBODY | ENGINES,
    "reader": EVERYBODY | READS,
    "operator": EVERYBODY | READS | CHANGES,
}
"""Over the network. Written out once more: the table of the program is what is tested."""
ON_THE_HOST: dict[str, set[str]] = {
    "no token": EVERYBODY | NODES,
    "tenant": EVERYBODY | NODES | ENGINES,
    "reader": EVERYBODY | NODES | READS,
    "operator": EVERYBODY | NODES | READS | CHANGES,
}
"""Over a unix socket."""


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path / "certs")


@pytest.fixture
def shown(certs: Certs) -> dict[str, DoorConfig]:
    doors = {
        "nobody": OPEN_DOOR,
        "stranger": certs.stranger("client"),
        "node": certs.door("node"),
        "registered node": certs.door("node"),
        "control": certs.door("control"),
        "no token": certs.door("client"),
        "revoked token": certs.holder("revoked", admin="operate"),
        "tenant": certs.holder("acme", tenant="acme"),
        "reader": certs.holder("anna", admin="read"),
        "operator": certs.holder("olga", admin="operate"),
    }
    revoke_token(certs.tokens, "revoked")
    return doors


@pytest.fixture
async def served(certs: Certs, shown: dict[str, DoorConfig], tmp_path: Path) -> AsyncIterator[dict[str, list[str]]]:
    """Addresses of a control plane and of a node, over the network and over unix sockets."""
    async with site(tmp_path) as here:
        door = certs.server("control")
        far = await here.control(door)
        near = await here.control(
            door, listen=f"unix:{tmp_path}/control.sock", index_path=str(tmp_path / "index-of-host")
        )
        node = await here.node(door=certs.server("node"))
        node.keys.heard(KEYS)
        yield {"control": [far.address, near.address], "node": [node.address, node.socket]}


async def passes(channel: grpc.aio.Channel, method: MethodDescriptor) -> bool:
    """Whether a call gets past the guard: an empty request is refused behind it, for it names no protocol."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            async for _ in channel.stream_stream(path)(iter([b""]), timeout=DEADLINE_S):
                pass  # the last one may be why it was refused, as the status is
        elif method.server_streaming:
            call = channel.unary_stream(path)(b"", timeout=DEADLINE_S)
            await anext(aiter(call))
            call.cancel()
        else:
            await channel.unary_unary(path)(b"", timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        name = dict(error.trailing_metadata() or ()).get("kvstore-error")
        if name in ("Unauthenticated", "Forbidden"):
            return False
        if name is None and error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        if name not in (None, "VersionMismatch", "InvalidInput"):
            raise
    return True


async def passed(
    served: dict[str, list[str]], door: DoorConfig, way: int, metadata: Sequence[tuple[str, str | bytes]] = ()
) -> set[str]:
    found = set()
    for process, services in SERVED.items():
        async with open_channel(served[process][way], door=door, serves=Role(f"{process}.kvstore")) as channel:
            adding(channel, lambda: metadata)
            for service in services:
                for method in SERVICES[service].methods:
                    if await passes(channel, method):
                        found.add(f"{service}/{method.name}")
    return found


@pytest.mark.parametrize("who", MAY)
async def test_over_the_network(served: dict[str, list[str]], shown: dict[str, DoorConfig], who: str) -> None:
    """Without a certificate of the cluster nothing is answered; with one, what role and token are for."""
    ticket = [(METADATA_KEY, KEYS.ticket)] if who == "registered node" else []
    assert await passed(served, shown[who], 0, ticket) == MAY[who]


@pytest.mark.parametrize("who", ON_THE_HOST)
async def test_over_a_unix_socket(served: dict[str, list[str]], shown: dict[str, DoorConfig], who: str) -> None:
    """The file's permissions stand for a client's certificate, and for a node's at the control plane."""
    assert await passed(served, replace(shown[who], cert="", key="", ca=""), 1) == ON_THE_HOST[who]


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("client", EVERYBODY | ENGINES | READS | CHANGES),
        ("node", EVERYBODY | NODES),
        ("control", EVERYBODY | ASKED_BY_CONTROL),
    ],
)
async def test_where_no_tokens_are_asked(certs: Certs, tmp_path: Path, role: str, may: set[str]) -> None:
    """Certificates alone decide: a client's is every tenant's and every admin's."""
    async with site(tmp_path) as here:
        control, node = await here.control(certs.door("control")), await here.node(door=certs.door("node"))
        served = {"control": [control.address], "node": [node.address]}
        assert await passed(served, certs.door(role), 0) == may


def test_every_call_has_a_row() -> None:
    """And every row a call."""
    assert set(ACCESS) == {f"{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods}
