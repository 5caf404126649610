"""Streams in both directions, over a real gRPC server: however one ends, its reader gets the peer's error."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kvstore import errors as e
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.channel import make_server, open_channel
from kvstore.rpc.status import STATUS, from_rpc, streaming
from kvstore.rpc.stream import end_telling, replies, tell
from tests.answering import answering
from tests.waiting import eventually

TEXT = "block 7 … of 3 × 4 B: 'no'"


class Service(node_pb2_grpc.NodeServicer):
    """Answers every message, and after the first ends with `error`, if there is one."""

    error: BaseException | None = None

    @streaming(node_pb2.LoadDown)
    async def Load(self, requests: Any, context: Any) -> AsyncIterator[node_pb2.LoadDown]:
        async for _ in requests:
            yield node_pb2.LoadDown(done=node_pb2.LoadDone())
            if self.error is not None:
                raise self.error


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def stub(tmp_path: Path, service: Service) -> AsyncIterator[node_pb2_grpc.NodeStub]:
    async with answering(tmp_path, service) as address, open_channel(address) as channel:
        yield node_pb2_grpc.NodeStub(channel)


async def read_all(call: Any) -> int:
    count = 0
    async for _ in replies(call, e.NodeUnavailable, "node"):
        count += 1
    return count


async def write_on(call: Any) -> None:
    while await tell(call, node_pb2.LoadUp()):
        pass


@pytest.mark.parametrize("cls", STATUS, ids=lambda cls: cls.__name__)
async def test_errors_come_back_as_themselves(service: Service, stub: Any, cls: type[e.KVStoreError]) -> None:
    """Class and text survive, the peer is named, and the messages before the error have come."""
    service.error = cls(TEXT)
    call = stub.Load(timeout=5)
    assert await tell(call, node_pb2.LoadUp())
    messages = replies(call, e.NodeUnavailable, "node")
    assert (await anext(messages)).WhichOneof("message") == "done"
    with pytest.raises(cls) as caught:
        await anext(messages)
    assert type(caught.value) is cls
    assert str(caught.value) == f"node: {TEXT}"


async def test_an_end_under_a_write_keeps_its_error(service: Service, stub: Any) -> None:
    """gRPC gives such a call a status of its own, a third of the time."""
    service.error = e.SessionLost(TEXT)
    for _ in range(100):
        call = stub.Load(timeout=10)
        reading = asyncio.create_task(read_all(call))
        await write_on(call)
        with pytest.raises(e.SessionLost, match="block 7"):
            await reading


async def test_a_refusal_carries_its_time(service: Service, stub: Any) -> None:
    """To the millisecond."""
    service.error = e.Refused("full", retry_after_s=1.234)
    call = stub.Load(timeout=5)
    await tell(call, node_pb2.LoadUp())
    with pytest.raises(e.Refused) as caught:
        await read_all(call)
    assert caught.value.retry_after_s == pytest.approx(1.234)


async def test_a_good_end_is_an_end(service: Service, stub: Any) -> None:
    """What was read stays read."""
    call = stub.Load(timeout=5)
    await tell(call, node_pb2.LoadUp())
    await end_telling(call)
    assert await read_all(call) == 1


async def test_a_process_that_dies_is_unavailable(tmp_path: Path) -> None:
    """Under a write too: then gRPC only knows of an internal error of its own."""
    for attempt in range(20):
        server = make_server()
        node_pb2_grpc.add_NodeServicer_to_server(Service(), server)
        server.add_insecure_port(f"unix:{tmp_path}/{attempt}")
        await server.start()
        async with open_channel(f"unix:{tmp_path}/{attempt}") as channel:
            call = node_pb2_grpc.NodeStub(channel).Load(timeout=10)
            reading = asyncio.create_task(read_all(call))
            writing = asyncio.create_task(write_on(call))
            await tell(call, node_pb2.LoadUp())
            await server.stop(None)
            with pytest.raises(e.NodeUnavailable):
                await reading
            await writing


def test_an_end_that_only_gave_an_internal_error_is_unavailable() -> None:
    """What gRPC says of a write that the end of its stream overtook."""
    metadata = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, details="Internal error from Core")
    assert type(from_rpc(lost, e.NodeUnavailable)) is e.NodeUnavailable


async def test_a_bug_at_the_other_side_is_no_error_of_ours(service: Service, stub: Any) -> None:
    """The caller learns that the process did not serve it."""
    service.error = RuntimeError("a bug")
    call = stub.Load(timeout=5)
    await tell(call, node_pb2.LoadUp())
    with pytest.raises(e.NodeUnavailable):
        await read_all(call)


@pytest.mark.parametrize("error", [None, e.PeerLost(TEXT)], ids=["read in part", "failed"])
async def test_a_call_that_is_over_is_let_go_of(service: Service, stub: Any, error: e.KVStoreError | None) -> None:
    """At once: one that waits for the garbage collector keeps the descriptor of its connection until then."""
    service.error = error
    call = stub.Load(timeout=5)
    await tell(call, node_pb2.LoadUp())
    messages = replies(call, e.NodeUnavailable, "node")
    await anext(messages)
    if error is not None:
        with pytest.raises(e.PeerLost):
            await anext(messages)
    await messages.aclose()
    call.cancel()
    gone = weakref.ref(call)
    gc.disable()
    try:
        del call, messages
        await eventually(lambda: gone() is None)
    finally:
        gc.enable()
