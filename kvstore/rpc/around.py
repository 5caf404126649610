"""Something around each call that a server serves: a clock, a span."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any

import grpc
import grpc.aio

Handler = Any  # of gRPC, whose own type takes no parameters at run time
_OURS = "/kvstore."


class Around(grpc.aio.ServerInterceptor):
    """For one server. Health and reflection are left alone. Belongs to the event loop."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    def around(self, rpc: str, context: Any) -> AbstractContextManager[None]:
        """Entered when a call begins and left when it ends, however it does. rpc: service and call (Node/Load)."""
        raise NotImplementedError

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
        if handler is None or not method.startswith(_OURS):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method.rpartition(".")[2], handler)
        return wrapped

    def _wrap(self, rpc: str, handler: Handler) -> Handler:
        inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            with self.around(rpc, context):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self.around(rpc, context):
                async with aclosing(inner(request, context)) as messages:
                    async for message in messages:
                        yield message

        read, write = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, read, write)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, read, write)
        return grpc.stream_stream_rpc_method_handler(stream, read, write)
