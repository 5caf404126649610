"""Bytes that are no message are answered like any other bad input, and logged like it: not at all.

gRPC's own answer is UNKNOWN, with a traceback in the server's log for each. The last interceptor of a server: those
before it, the guard among them, have decided when it speaks.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError

from kvstore.errors import InvalidInput
from kvstore.rpc.status import abort
from kvstore.rpc.wrapping import Handler, Wrapping, behaviour, of_kind


class _NoMessage:
    """Stands for bytes that are none."""


_NONE = _NoMessage()


class Decoding(Wrapping):
    """For one server. Belongs to the event loop."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        return _wrap(handler)


def _wrap(handler: Handler) -> Handler:
    inner = behaviour(handler)

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

    several = answers if handler.unary_stream else stream
    return of_kind(handler, unary, several, _reading(handler.request_deserializer))


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
