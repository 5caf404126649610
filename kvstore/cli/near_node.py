"""The node of this host through which a command moves bytes."""

import argparse
from dataclasses import replace

from kvstore.cli.archive import Header
from kvstore.client import AsyncClient
from kvstore.config import ClientConfig, DoorConfig
from kvstore.errors import InvalidInput
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import caller
from kvstore.rpc.host import host_identity

UNIX = "unix:"
_CALL_MS = 60_000


def add_near_node(parser: argparse.ArgumentParser) -> None:
    """The options that `address_of` and `tenants_door` read."""
    parser.add_argument(
        "--node",
        default="",
        metavar="NODE",
        help="the node of this host through which the bytes go: its id, or its socket (unix:/path); default: any",
    )
    parser.add_argument(
        "--tenant-token-file",
        default="",
        metavar="FILE",
        help="the token of the namespace's tenant, where one is asked",
    )


def tenants_door(args: argparse.Namespace, door: DoorConfig) -> DoorConfig:
    """As a client of the namespace's tenant, not as the operator."""
    return replace(door, token_file=args.tenant_token_file)


async def near_client(
    near: str, header: Header, shard: tuple[int, int], door: DoorConfig, *, read_only: bool = False
) -> AsyncClient:
    """A client of a node of this host (`address_of`), in the namespace of a file. Raises what connecting raises."""
    return await AsyncClient.connect(
        node=near,
        namespace=header.namespace,
        layout=header.layout,
        shard=shard,
        config=ClientConfig(deadline_ms=_CALL_MS),
        read_only=read_only,
        door=door,
    )


async def nodes_alive(stub: "admin_pb2_grpc.AdminAsyncStub", deadline_s: float) -> list[admin_pb2.NodeState]:
    """By name."""
    reply = await stub.Nodes(admin_pb2.NodesRequest(caller=caller("admin")), timeout=deadline_s)
    return sorted((state for state in reply.nodes if state.alive), key=lambda state: state.address.node_id)


def address_of(named: str, alive: list[admin_pb2.NodeState]) -> str:
    """Where a client of this host connects to. named: a node's id, its socket (unix:/path), or "" for any node of this
    host. Raises InvalidInput."""
    if named.startswith(UNIX):
        return named
    here = [state.address for state in alive if state.address.host == host_identity()]
    known = {state.address.node_id: state.address for state in alive}
    if named and named not in known:
        raise InvalidInput(f"no node {named!r} is alive")
    if named and known[named] not in here:
        raise InvalidInput(f"node {named!r} runs on another host: run this there")
    if not here:
        raise InvalidInput("no node runs on this host; bytes go through one that does")
    return known[named].grpc if named else here[0].grpc
