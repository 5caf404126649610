"""How long the calls of a server take, by call and status."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio

from kvstore.observe.families import Families
from kvstore.observe.histogram import Histogram

Handler = Any  # of gRPC, whose own type takes no parameters at run time
_OURS = "/kvstore."


class RpcTimes(grpc.aio.ServerInterceptor):
    """One server's. Health and reflection are not counted. Belongs to the event loop."""

    def __init__(self) -> None:
        self._timed: dict[str, Handler] = {}
        self._times: dict[tuple[str, str], Histogram] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        timed = self._timed.get(method)
        if timed is not None:  # a server's handlers are the same from call to call
            return timed
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(_OURS):
            return handler
        timed = self._timed[method] = self._wrapped(method.rpartition(".")[2], handler)
        return timed

    def show(self, families: Families) -> None:
        for (rpc, code), histogram in sorted(self._times.items()):
            families.histogram("kvstore_rpc_seconds", histogram, rpc, code)

    def _wrapped(self, rpc: str, handler: Handler) -> Handler:
        inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            with self._timing(rpc, context):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._timing(rpc, context):
                async with aclosing(inner(request, context)) as messages:
                    async for message in messages:
                        yield message

        read, write = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, read, write)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, read, write)
        return grpc.stream_stream_rpc_method_handler(stream, read, write)

    @contextmanager
    def _timing(self, rpc: str, context: Any) -> Iterator[None]:
        began_ns = time.perf_counter_ns()
        code = ""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        except grpc.aio.AbortError:
            raise
        except BaseException:
            code = grpc.StatusCode.UNKNOWN.name
            raise
        finally:
            status = context.code()  # 0 until something is set
            taken = (rpc, code or (status.name if status else grpc.StatusCode.OK.name))
            histogram = self._times.get(taken)
            if histogram is None:
                histogram = self._times[taken] = Histogram()
            histogram.add((time.perf_counter_ns() - began_ns) / 1e9)
