"""Errors on the wire: every class travels through a real gRPC server and comes back as itself, with its text."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kvstore import errors as e
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.rpc import PROTOCOL_VERSION
from kvstore.rpc.channel import MESSAGE_BYTES_MAX, caller, open_channel
from kvstore.rpc.status import STATUS, from_rpc, streaming, unary
from tests.answering import answering

TEXT = "block 7 … of 3 × 4 B: 'no'"


class Service(node_pb2_grpc.NodeServicer):
    """Answers with what the test puts here: an error to raise, or what to wait for."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.begun = asyncio.Event()
        self.hang = False

    @unary
    async def Usage(self, request: node_pb2.UsageRequest, context: Any) -> node_pb2.UsageReply:
        self.begun.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return node_pb2.UsageReply()

    @streaming(node_pb2.LoadDown)
    async def Load(self, requests: Any, context: Any) -> AsyncIterator[node_pb2.LoadDown]:
        async for _ in requests:
            yield node_pb2.LoadDown()
            if self.error is not None:
                raise self.error


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def stub(tmp_path: Path, service: Service) -> AsyncIterator[node_pb2_grpc.NodeStub]:
    async with answering(tmp_path, service) as address, open_channel(address) as channel:
        yield node_pb2_grpc.NodeStub(channel)


async def error_of(stub: Any, timeout: float = 5, **request: Any) -> e.KVStoreError:
    request = {"caller": caller("test")} | request
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Usage(node_pb2.UsageRequest(**request), timeout=timeout)
    return from_rpc(caught.value, e.NodeUnavailable, "node x")


def test_every_error_is_in_the_table() -> None:
    """A class that is not would come back as its base."""
    classes = {cls for _, cls in inspect.getmembers(e, inspect.isclass) if issubclass(cls, e.KVStoreError)}
    assert classes - {e.KVStoreError} == set(STATUS)


@pytest.mark.parametrize("cls", STATUS, ids=lambda cls: cls.__name__)
async def test_unary_errors_come_back_as_themselves(service: Service, stub: Any, cls: type[e.KVStoreError]) -> None:
    """Class and text survive, and the peer is named."""
    service.error = cls(TEXT)
    error = await error_of(stub)
    assert type(error) is cls
    assert str(error) == f"node x: {TEXT}"


@pytest.mark.parametrize("cls", STATUS, ids=lambda cls: cls.__name__)
async def test_streams_end_with_the_same_errors(service: Service, stub: Any, cls: type[e.KVStoreError]) -> None:
    """After messages that came before it."""
    service.error = cls(TEXT)
    call = stub.Load(timeout=5)
    await call.write(node_pb2.LoadUp())
    assert (await call.read()).WhichOneof("message") is None
    assert (await call.read()).failure.error == cls.__name__
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = from_rpc(caught.value)
    assert type(error) is cls
    assert str(error) == TEXT


async def test_a_refusal_carries_its_time(service: Service, stub: Any) -> None:
    """To the millisecond."""
    service.error = e.Refused("full", retry_after_s=1.234)
    error = await error_of(stub)
    assert isinstance(error, e.Refused)
    assert error.retry_after_s == pytest.approx(1.234)


async def test_the_base_class_travels_too(service: Service, stub: Any) -> None:
    """As an internal error: nobody raises it on purpose."""
    service.error = e.KVStoreError("odd")
    error = await error_of(stub)
    assert type(error) is e.KVStoreError


@pytest.mark.parametrize("text", ["", "x" * 5_000, "x" * 100_000, "…😀" * 10_000], ids=len)
async def test_texts_of_any_length(service: Service, stub: Any, text: str) -> None:
    """gRPC bounds the size of a status: a text that a caller can make long is cut, the class stays."""
    service.error = e.InvalidInput(text)
    error = await error_of(stub)
    assert type(error) is e.InvalidInput
    assert text[:500] in str(error)


async def test_a_bug_at_the_other_side_is_no_error_of_ours(service: Service, stub: Any) -> None:
    """The caller learns that the process did not serve it."""
    service.error = RuntimeError("a bug")
    assert type(await error_of(stub)) is e.NodeUnavailable


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
async def test_another_protocol_version_is_refused(service: Service, stub: Any, version: int) -> None:
    """Before the method runs; a caller that says none is refused too."""
    error = await error_of(stub, caller=types_pb2.Caller(protocol_version=version))
    assert type(error) is e.VersionMismatch
    assert f"protocol {version}" in str(error)
    assert not service.begun.is_set()


async def test_what_a_release_does_not_know_yet_is_a_version_mismatch(stub: Any) -> None:
    """A method that is not implemented at the other side."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Pin(node_pb2.PinRequest(caller=caller("test")), timeout=5)
    assert type(from_rpc(caught.value)) is e.VersionMismatch


async def test_a_deadline_is_a_deadline(service: Service, stub: Any) -> None:
    """Of the caller's clock, with the process alive."""
    service.hang = True
    assert type(await error_of(stub, timeout=0.05)) is e.DeadlineExceeded


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    """Of the class that the caller names, so that control plane and node are told apart."""
    async with open_channel(f"unix:{tmp_path}/nobody") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node_pb2_grpc.NodeStub(channel).Usage(node_pb2.UsageRequest(caller=caller("test")), timeout=5)
    assert type(from_rpc(caught.value, e.ControlUnavailable)) is e.ControlUnavailable


async def test_a_message_over_the_limit_is_too_large(stub: Any) -> None:
    """gRPC's own refusal, by the sender already."""
    error = await error_of(stub, caller=types_pb2.Caller(protocol_version=1, name="x" * (MESSAGE_BYTES_MAX + 1)))
    assert type(error) is e.TooLarge
