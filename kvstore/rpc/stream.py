"""The caller's side of a stream in both directions: its reader tells how it ended, a writer only stops.

When a stream ends under a write, gRPC gives the call a status of its own and plain `read` then refuses, so the peer's
error would be lost; the iterator goes on to the last message, and that holds the error.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc.aio

from kvstore import errors as e
from kvstore.rpc.status import from_failure, from_rpc

Call = grpc.aio.StreamStreamCall[Any, Any]


async def replies(call: Call, unavailable: type[e.Unavailable], who: str) -> AsyncGenerator[Any, None]:
    """The messages of a stream, until its end; raises the peer's error, or `unavailable` when there is no peer.

    To cancel a wait for the next message is to end the stream.
    """
    async with aclosing(aiter(call)) as messages:  # type: ignore[type-var]
        try:
            async for message in messages:
                if message.WhichOneof("message") == "failure":
                    raise from_failure(message.failure, who)
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, unavailable, who) from None


async def tell(call: Call, message: Any) -> bool:
    """Writes a message. False: the stream has ended, and its reader says why."""
    try:
        await call.write(message)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True


async def end_telling(call: Call) -> None:
    """Says that no more messages follow."""
    try:
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return
