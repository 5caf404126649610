"""Interceptors of a server that put something of their own in place of each handler."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

Handler = Any  # of gRPC, whose own type takes no parameters at run time


class Wrapping(grpc.aio.ServerInterceptor):
    """For one server, whose handlers are the same from call to call: each is wrapped once. Belongs to the event
    loop."""

    only = "/kvstore."
    """What the calls begin with that are wrapped: health and reflection are left alone."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    def wrap(self, method: str, handler: Handler) -> Handler:
        """What is called in place of a handler. method: /kvstore.v1.Node/Load."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(self.only):
            return handler
        wrapped = self._wrapped[method] = self.wrap(method, handler)
        return wrapped


def behaviour(handler: Handler) -> Callable[[Any, Any], Any]:
    """What a handler does, of whatever kind it is."""
    found: Callable[[Any, Any], Any] = handler.stream_stream or handler.unary_stream or handler.unary_unary
    return found


def of_kind(
    handler: Handler,
    unary: Callable[[Any, Any], Awaitable[Any]],
    stream: Callable[[Any, Any], AsyncIterator[Any]],
    read: Callable[[bytes], Any],
) -> Handler:
    """A handler of the same kind: of one answer (`unary`) or of several (`stream`). read: makes a message of bytes."""
    write = handler.response_serializer
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary, read, write)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(stream, read, write)
    return grpc.stream_stream_rpc_method_handler(stream, read, write)
