"""Calls of the command line to a control plane."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from kvstore.config import DoorConfig
from kvstore.errors import ControlUnavailable
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import OPEN_DOOR, caller, open_channel
from kvstore.rpc.status import from_rpc
from kvstore.rpc.tokens import expect_secret

TOKEN_VARIABLE = "KVSTORE_TOKEN"
_CLOSED = "Socket closed"
"""What gRPC says when a server that wants TLS is called without."""
_MAY_BE_SHUT = " (it may ask for a certificate: --door-cert, docs/security.md)"

Reply = TypeVar("Reply")
SeedOf = Callable[[bytes], Awaitable[bytes]]
"""Asks what the keys of a namespace, by its id, begin with; empty for that id."""


async def ask(
    control: str, call: Callable[["admin_pb2_grpc.AdminAsyncStub"], Awaitable[Reply]], door: DoorConfig = OPEN_DOOR
) -> Reply:
    """One call. control: the address. Raises ControlUnavailable, and what the control plane answers."""
    async with connected(control, door) as stub:
        return await call(stub)


@asynccontextmanager
async def connected(
    control: str, door: DoorConfig = OPEN_DOOR, *, watched: bool = False
) -> AsyncIterator["admin_pb2_grpc.AdminAsyncStub"]:
    """For several calls; raises as `ask` does. watched: a stream ends within seconds when the other side is lost."""
    async with open_channel(control, watched, door=door, serves=Role.CONTROL, token=_token(door)) as channel:
        try:
            yield admin_pb2_grpc.AdminStub(channel)
        except grpc.RpcError as error:
            closed = str(error.details()).endswith(_CLOSED)
            hint = _MAY_BE_SHUT if closed and not door.shut else ""
            raise from_rpc(error, ControlUnavailable, f"control plane {control}{hint}") from error


def seeds(stub: "admin_pb2_grpc.AdminAsyncStub", door: DoorConfig, deadline_s: float) -> SeedOf:
    """Of the control plane's cluster. It is not asked where no token is shown: keys are salted where tokens are asked,
    and nowhere else."""
    shows_token = bool(door.token_file or _token(door))

    async def seed_of(namespace_id: bytes) -> bytes:
        if not shows_token:
            return b""
        request = admin_pb2.KeySeedRequest(caller=caller("admin"), namespace_id=namespace_id)
        return (await stub.KeySeed(request, timeout=deadline_s)).seed

    return seed_of


def _token(door: DoorConfig) -> str:
    """Of the environment, where no file is named. Raises ConfigError."""
    text = "" if door.token_file else os.environ.get(TOKEN_VARIABLE, "")
    return expect_secret(text, TOKEN_VARIABLE) if text else ""


def did_not_answer(node: Any) -> str:
    """node: of an answer, with its id and its error."""
    return f"{node.node_id} did not answer: {node.error}"


def unanswered(reply: Any) -> list[str]:
    """Those of an answer's nodes that could not be asked."""
    return [did_not_answer(node) for node in reply.nodes if node.error]


def as_json(message: Message) -> str:
    """One line, with the message's own names and all its fields."""
    return json.dumps(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )
