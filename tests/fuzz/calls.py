"""Calls of every service with messages that hypothesis makes, many at once, and what may come back."""

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from kvstore.client import AsyncClient
from kvstore.pb import admin_pb2, control_pb2, node_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.layouts import layout_message
from kvstore.rpc.namespaces import namespace_message
from kvstore.rpc.status import STATUS
from tests.cluster import LAYOUT
from tests.fuzz.messages import MUTATIONS, Known, Mutation, families
from tests.inprocess import tokens

METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for file in (control_pb2, admin_pb2, node_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ANYONE: Known = {"caller": [caller("fuzz")]}
"""What is known to those who have never talked to the server."""
MUTANTS = 3
"""Of each family."""
DEADLINE_S = 5.0
STREAM_S = 0.15
"""After that streams are ended by their caller, as a rule."""
REFUSALS = {"Unauthenticated", "Forbidden"}
_NAMES = {cls.__name__ for cls in STATUS}
_WRITE_LOST = "Internal error from Core"
"""Of a write that the end of its stream overtook."""
_GRPCS_OWN = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a message over the limit
    grpc.StatusCode.CANCELLED,  # by us
}


def known_to(client: AsyncClient) -> Known:
    """What a client of the node would say, and what others would."""
    link, chain = client._link, client.chain(tokens(8))
    keys = [chain.packed, chain.packed[:16], chain.packed[:-16], bytes(16), b""]
    return {
        **ANYONE,
        "session_id": [link.session_id],
        "namespace_id": [client.namespace.id, bytes(16)],
        "namespace": [namespace_message(client.namespace)],
        "layout": [layout_message(LAYOUT)],
        "node_id": ["n0", "ghost", ""],
        "reader_node_id": ["n0", "ghost"],
        "tenant": ["default", "other"],
        "model": ["test"],
        "keys": keys,
        "wanted": [b"\1" * 8, b"\1" * 7, b"\0" * 8, b""],
        "shard_rank": [0],
        "shard_count": [1, 0],
        "depth": [0],
        "first": [0, 1],
        "parent": [b""],
        "ticket": [b""],
        "written": [b"\1" * 8, b"\1" * 7, b""],
        "checksums": [b""],
        "layers": [0, 1, LAYOUT.layers],
        "pid": [os.getpid()],
        "lease_id": [bytes([n]) * 16 for n in range(4)],
        # Nobody is there, which a connection finds at once.
        "grpc": ["127.0.0.1:1", "unix:/nowhere"],
        "network": ["compute", "storage", ""],
        "level": ["warning", "error", "inherit", "x"],
        "logger": ["kvstore.fuzzed"],
        "pattern": ["test", "llama-*"],
        "deadline_ms": [0, 1, 100],
        "hold_ms": [0, 1, 100],
        "for_ms": [0, 1, 100],
        "ttl_ms": [0, 1, 100_000],
        "block_tokens": [LAYOUT.block_tokens],
    }


@dataclass(frozen=True)
class Call:
    """What is called, and with which messages."""

    rpc: str
    messages: Sequence[bytes]


def calls(rpcs: Sequence[str], known: Known) -> SearchStrategy[list[Call]]:
    """Calls to be made at once: families of messages that are well formed, and mutants."""
    one = st.sampled_from([_calls_of(rpc, known) for rpc in rpcs]).flatmap(lambda made: made)
    return st.lists(one, min_size=4, max_size=8).map(lambda made: [call for some in made for call in some])


def _calls_of(rpc: str, known: Known) -> SearchStrategy[list[Call]]:
    method = METHODS[rpc]

    def made(family: list[Message], mutation: Mutation) -> list[Call]:
        raw = [message.SerializeToString() for message in family]
        alone = [[each] for each in (*raw, *mutation.of(raw[0], MUTANTS))]
        return [Call(rpc, each) for each in (*alone, *([raw] if method.client_streaming else []))]

    return st.builds(made, families(method.input_type, known), MUTATIONS)


async def send(channel: grpc.aio.Channel, call: Call, stream_s: float = STREAM_S) -> str:
    """One call. Its answer: the name of an error, "OK", or gRPC's own code. Fails for what is no answer. stream_s: when
    a stream that is still open is ended."""
    method = METHODS[call.rpc]
    path = f"/{method.containing_service.full_name}/{method.name}"
    last: list[bytes] = []
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            if method.client_streaming or method.server_streaming:
                await _stream(channel, path, method, call.messages, last, stream_s)
            else:
                await channel.unary_unary(path)(call.messages[0], timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        name = str(dict(error.trailing_metadata() or ()).get("kvstore-error", ""))
        if name not in _NAMES and error.code() not in _GRPCS_OWN and error.details() != _WRITE_LOST:
            raise
        return name or _last_words(method, last) or error.code().name
    return "OK"


def _last_words(method: MethodDescriptor, last: Sequence[bytes]) -> str:
    """The error that a stream had as its last message: its status may be lost to who was writing."""
    if not last or "failure" not in method.output_type.fields_by_name:
        return ""
    return str(GetMessageClass(method.output_type).FromString(last[0]).failure.error)  # type: ignore[attr-defined]


async def _stream(
    channel: grpc.aio.Channel,
    path: str,
    method: MethodDescriptor,
    messages: Sequence[bytes],
    last: list[bytes],
    stream_s: float,
) -> None:
    """last: gets the last message that came."""
    call = (
        channel.stream_stream(path)(_paced(messages), timeout=DEADLINE_S)
        if method.client_streaming
        else channel.unary_stream(path)(messages[0], timeout=DEADLINE_S)
    )
    try:
        async with asyncio.timeout(stream_s):
            async for message in call:
                last[:] = [message]
    except TimeoutError:
        call.cancel()


async def _paced(messages: Iterable[bytes]):  # type: ignore[no-untyped-def]
    for message in messages:
        yield message
        await asyncio.sleep(0)
