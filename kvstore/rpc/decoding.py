"""Bytes that are no message are answered like any other bad input, and logged like it: not at all.

gRPC's own answer is UNKNOWN, with a traceback in the server's log for each. The last interceptor of a server: those
before it, the guard among them, have decided when it speaks.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from kvstore.errors import InvalidInput
from kvstore.rpc.status import abort

Handler = Any  # of gRPC, whose own type takes no parameters at run time
_OURS = "/kvstore."


class _NoMessage:
    """Stands for bytes that are none."""


_NONE = _NoMessage()


class Decoding(grpc.aio.ServerInterceptor):
    """For one server. Belongs to the event loop."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        if method not in self._wrapped:  # a server's handlers are the same from call to call
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith(_OURS):
                return handler
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _wrap(handler: Handler) -> Handler:
    inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

    async def unary(request: Any, context: Any) -> Any:
        if request is _NONE:
            await abort(context, _error())
        return await inner(request, context)

    async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
        if request is _NONE:
            await abort(context, _error())
        async with aclosing(inner(request, context)) as messages:
            async for message in messages:
                yield message

    async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(inner(_Messages(requests), context)) as messages:
            async for message in messages:
                yield message

    read, write = _reading(handler.request_deserializer), handler.response_serializer
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary, read, write)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(answers, read, write)
    return grpc.stream_stream_rpc_method_handler(stream, read, write)


def _reading(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def reading(raw: bytes) -> Any:
        try:
            return read(raw)
        except DecodeError:
            return _NONE

    return reading


class _Messages:
    """The messages of a stream. Raises InvalidInput in place of one that is none."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if message is _NONE:
            raise _error()
        return message


def _error() -> InvalidInput:
    return InvalidInput("these bytes are no message of this call")
