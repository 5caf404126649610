"""Something around each call that a server serves: a clock, a span, a guard."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from inspect import iscoroutine
from typing import Any

import grpc
import grpc.aio

from kvstore.errors import KVStoreError
from kvstore.rpc.status import abort, last_words

Handler = Any  # of gRPC, whose own type takes no parameters at run time


class Around(grpc.aio.ServerInterceptor):
    """For one server. Belongs to the event loop."""

    only = "/kvstore."
    """What the calls begin with that it is around: health and reflection are left alone."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    def around(self, rpc: str, context: Any) -> AbstractContextManager[None]:
        """Entered when a call begins and left when it ends, however it does. rpc: service and call (Node/Load). A
        KVStoreError that it raises is the call's answer."""
        raise NotImplementedError

    def still(self, rpc: str, context: Any) -> None:
        """Before each message of a stream; a KVStoreError that it raises ends the call, as its answer."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:  # a server's handlers are the same from call to call
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(self.only):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        rpc = method.rpartition(".")[2]
        inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                with self.around(rpc, context):
                    return await inner(request, context)
            except KVStoreError as error:
                await abort(context, error)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                with self.around(rpc, context):
                    answering = inner(request, context)
                    if iscoroutine(answering):  # it writes its messages itself, as health's does
                        await answering
                        return
                    async with aclosing(answering) as messages:
                        async for message in messages:
                            self.still(rpc, context)
                            yield message
            except KVStoreError as error:
                if (failure := last_words(method, error)) is not None:
                    yield failure
                await abort(context, error)

        read, write = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, read, write)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, read, write)
        return grpc.stream_stream_rpc_method_handler(stream, read, write)
